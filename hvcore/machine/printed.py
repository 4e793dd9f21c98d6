"""What a machine prints.  A guest that prints for ever must not fill the memory of the process that it is emulated in."""

__all__ = ["LONGEST", "Printed"]

LONGEST = 8 << 20
"""Bytes that are kept of what one power-on printed on one port."""
_CUT = b"\r\n[8 MiB were printed: what follows is not kept]\r\n"


class Printed(bytearray):
    """The bytes sent on one port since power-on, the first `LONGEST` of them; then a word that there were more."""

    def put(self, data: bytes) -> None:
        """More was printed."""
        room = LONGEST - len(self)
        if room >= len(data):
            self += data
        elif room >= 0:
            self += data[:room] + _CUT
