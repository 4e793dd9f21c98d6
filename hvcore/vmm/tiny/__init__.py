"""TinyVisor: two guests at once, each with its own range of RAM, processor, PCI functions and remapping domain.

Guest 1 has the machine as it is (guest-physical = host-physical) without what guest 2 got.  Guest 2's guest-physical addresses begin at 0;
its nested tables lead them to its range of RAM, and those of domain 1 do the same for the DMA of its functions: PCI passthrough.
"""

from .split import Share
from .visor import SecondGuest, TinyVisor

__all__ = ["SecondGuest", "Share", "TinyVisor"]
