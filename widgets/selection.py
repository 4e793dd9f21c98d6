"""What a person has chosen, shared by all views: an address, a device, a domain, a fault.

The browser holds it too: views that share a `Selection` follow one another there, without a kernel, in an exported page as well.
"""

from typing import Any

import anywidget
import traitlets

__all__ = ["SPACES", "Selection"]

SPACES = ("physical", "iova")
"""What an address is: host-physical, or what a device asks for (an IOVA of the chosen domain or device)."""


def _to_hex(value: int | None, _widget: Any) -> str | None:
    return None if value is None else hex(value)


def _from_hex(value: str | None, _widget: Any) -> int | None:
    return None if value is None else int(value, 16)


class Selection(anywidget.AnyWidget):
    """`choose()` sets it from Python; `observe()` tells of changes, also of those made in the browser.

    `address` is a number of 64 bits in `space`; `device` a requester id; `domain` a key as `domain_key` gives it, "" for none; `fault` an
    index of the run's fault records.  What is None is not chosen.
    """

    _esm = "export default { render() {} };"
    address = traitlets.Int(None, allow_none=True, min=0, max=(1 << 64) - 1).tag(sync=True, to_json=_to_hex, from_json=_from_hex)
    space = traitlets.Enum(SPACES, "physical").tag(sync=True)
    device = traitlets.Int(None, allow_none=True, min=0, max=0xFFFF).tag(sync=True)
    domain = traitlets.Unicode("").tag(sync=True)
    fault = traitlets.Int(None, allow_none=True, min=0).tag(sync=True)

    def choose(self, *, address: int | None = None, space: str = "physical", device: int | None = None, domain: str = "",
               fault: int | None = None) -> None:
        """Chooses these and nothing else."""
        with self.hold_sync(), self.hold_trait_notifications():
            self.address, self.space, self.device, self.domain, self.fault = address, space, device, domain, fault

    @property
    def nothing(self) -> bool:
        """Whether nothing is chosen."""
        return self.address is None and self.device is None and not self.domain and self.fault is None

    def clear(self) -> None:
        """Chooses nothing."""
        self.choose()


def domain_key(unit: int | None, did: int) -> str:
    """How a selection names a domain: the unit's register base and the domain id, in hex."""
    return f"{unit or 0:#x}/{did:#x}"
