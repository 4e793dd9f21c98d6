"""Which kind of PCI Express function or bridge something is, by its description and its place in the tree."""

from ..spec.pci import PORTS, PortType
from .description import PciDescription

__all__ = ["express_type"]


def express_type(function: PciDescription, on_root_bus: bool, above: PortType | None) -> PortType | None:
    """The port type in the function's PCI Express capability; None where it has none.

    `above` is the type of the bridge it lies behind (None: a conventional one).  What the description leaves open follows from the place:
    bridges on a root bus are root ports, others switch ports; on a conventional bus nothing has the capability.
    """
    if not function.pcie or function.port_type is not None:
        return function.port_type if function.pcie else None
    bridge = function.model == "bridge"
    if on_root_bus:
        return PortType.ROOT_PORT if bridge else PortType.INTEGRATED_ENDPOINT
    if above not in PORTS and above is not PortType.PCI_TO_PCIE_BRIDGE:
        return None
    if not bridge:
        return PortType.ENDPOINT
    return PortType.DOWNSTREAM_PORT if above is PortType.UPSTREAM_PORT else PortType.UPSTREAM_PORT
