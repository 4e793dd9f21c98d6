"""hvlab: boots a thin hypervisor's core in an emulated PC and shows what its remapping units let devices do.

    from hvcore import Config, Machine
    m = Machine.load("q35-6g")
    run = m.boot(Config(VTD_TRANS=True))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .outside import Outside as Outside
    from .run import Run as Run
    from .session import Machine as Machine
    from .vmm.config import Config as Config

__version__ = "0.1.0.dev0"
__all__ = ["Config", "Machine", "Outside", "Run", "__version__"]

_HOMES = {"Machine": "session", "Run": "run", "Outside": "outside", "Config": "vmm.config"}


def __getattr__(name: str) -> Any:
    """The public classes, imported when they are first asked for, so that `import hvcore` costs next to nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hvcore' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
