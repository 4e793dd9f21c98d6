"""A real Linux as the guest: Debian's kernel and busybox, fetched into a cache by `hvlab linux fetch`, or files of the user's own."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .image import LinuxImage as LinuxImage
    from .image import linux_image as linux_image

__all__ = ["LinuxImage", "linux_image"]


def __getattr__(name: str) -> Any:
    """What unpacks kernels is imported when it is first asked for: the command line imports this package at every start."""
    if name not in __all__:
        raise AttributeError(f"module 'hvcore.linux' has no attribute {name!r}")
    from . import image
    return getattr(image, name)
