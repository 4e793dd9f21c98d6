"""NVME_DRIVER: the core's own NVMe driver stands between the guest and the first controller and encrypts a part of the disk.

The guest drives registers that the core answers (`registers`), with queues in its own memory.  The controller works on shadow queues and
shadow buffers in the core's heap (`layout`) and never sees an address of the guest's: the core fetches the guest's commands, checks every
address they name (`guestmemory`), lets through what it knows (`commands`), copies the data, encrypts or decrypts them (`crypt`), and posts
the completions to the guest (`driver`).
"""

from .attach import Attached, attach
from .driver import Driver

__all__ = ["Attached", "Driver", "attach"]
