"""Which of the guest's commands reach the controller, and in which form.  What is not known here is refused, and so is what carries
addresses in a way of its own (host memory buffers, scatter-gather lists, doorbell buffers).

Write Zeroes is not offered and not carried out: the controller would put zeros in the clear where ciphertext belongs.
"""

from collections.abc import Callable
from typing import NamedTuple

from ...machine.memory import PAGE
from ...spec.nvme import AdminOpcode, Command, Feature, Identify, NvmOpcode, Status
from .crypt import BLOCK
from .layout import QUEUES, TRANSFER

__all__ = ["EVENTS", "STAND_INS", "Answer", "Order", "admit", "edited_identify", "edited_result"]

EVENTS = 4
"""Asynchronous Event Requests that are held at once."""

NAMESPACE, _EVERY_NAMESPACE = 1, 0xFFFFFFFF
_RANGE = 16
_FUA_AND_RETRY = 3 << 30
_DATASET_MANAGEMENT = 1 << 2


class Answer(NamedTuple):
    """The core's own answer to a command: status, and dword 0 of the completion."""

    status: Status
    result: int = 0


class Order(NamedTuple):
    """What the controller is told in the guest's place, without command id and data pointers; bytes of data, and whether they go to it.

    The data of a Read or Write begin at block `lba`.
    """

    command: Command
    length: int = 0
    outward: bool = False
    lba: int = 0


Handler = Callable[[Command], Order | Answer]

STAND_INS = (Command(AdminOpcode.GET_FEATURES, cdw10=Feature.ARBITRATION), Command(NvmOpcode.FLUSH, nsid=NAMESPACE))
"""What the controller is told where the core answers itself, on the admin queue and on others: so completions keep their order."""


def admit(command: Command, io: bool, blocks: int) -> Order | Answer:
    """A command of the guest's on an I/O or the admin queue; `blocks` is the namespace's size, 0 where it cannot be used."""
    handler = (_IO if io else _ADMIN).get(command.opcode)
    if handler is None:
        return Answer(Status.INVALID_OPCODE)
    if command.flags:
        return Answer(Status.INVALID_FIELD)
    if io and not blocks:
        return Answer(Status.INVALID_NAMESPACE)
    order = handler(command)
    return Answer(Status.INVALID_FIELD) if isinstance(order, Order) and order.length > TRANSFER else order


# --- admin commands

def _identify(c: Command) -> Order:
    return Order(Command(c.opcode, nsid=c.nsid, cdw10=c.cdw10, cdw11=c.cdw11), PAGE)


def _get_log_page(c: Command) -> Order:
    length = ((c.cdw10 >> 16 | (c.cdw11 & 0xFFFF) << 16) + 1) * 4
    return Order(Command(c.opcode, nsid=c.nsid, cdw10=c.cdw10, cdw11=c.cdw11, cdw12=c.cdw12, cdw13=c.cdw13), length)


def _features(c: Command) -> Order | Answer:
    if c.cdw10 & 0xFF not in list(Feature):
        return Answer(Status.INVALID_FIELD)
    return Order(Command(c.opcode, nsid=c.nsid, cdw10=c.cdw10, cdw11=c.cdw11))


def _async_event(c: Command) -> Order:
    return Order(Command(c.opcode))


# --- I/O commands

def _transfer(c: Command) -> Order | Answer:
    if c.nsid != NAMESPACE:
        return Answer(Status.INVALID_NAMESPACE)
    lba, count = c.cdw10 | c.cdw11 << 32, (c.cdw12 & 0xFFFF) + 1
    command = Command(c.opcode, nsid=c.nsid, cdw10=c.cdw10, cdw11=c.cdw11, cdw12=c.cdw12 & (_FUA_AND_RETRY | 0xFFFF))
    return Order(command, count * BLOCK, c.opcode == NvmOpcode.WRITE, lba)


def _flush(c: Command) -> Order | Answer:
    return Order(Command(c.opcode, nsid=c.nsid)) if c.nsid in (NAMESPACE, _EVERY_NAMESPACE) else Answer(Status.INVALID_NAMESPACE)


def _dataset_management(c: Command) -> Order | Answer:
    if c.nsid != NAMESPACE:
        return Answer(Status.INVALID_NAMESPACE)
    return Order(Command(c.opcode, nsid=c.nsid, cdw10=c.cdw10 & 0xFF, cdw11=c.cdw11), ((c.cdw10 & 0xFF) + 1) * _RANGE, True)


_ADMIN: dict[int, Handler] = {AdminOpcode.IDENTIFY: _identify, AdminOpcode.GET_LOG_PAGE: _get_log_page, AdminOpcode.SET_FEATURES: _features,
                              AdminOpcode.GET_FEATURES: _features, AdminOpcode.ASYNC_EVENT_REQUEST: _async_event}
_IO: dict[int, Handler] = {NvmOpcode.READ: _transfer, NvmOpcode.WRITE: _transfer, NvmOpcode.FLUSH: _flush,
                           NvmOpcode.DATASET_MANAGEMENT: _dataset_management}


# --- what the guest is told

_MOST_PAGES = (TRANSFER // PAGE).bit_length() - 1
_NOT_OFFERED = ((96, 100), (256, 258), (265, 266), (272, 280), (522, 523), (536, 540))
"""Bytes of Identify Controller that offer what the driver does not do: CTRATT, OACS, APSTA, host memory buffer, fused commands, SGLS."""


def edited_identify(cns: int, data: bytes) -> bytes:
    """An Identify page as the guest gets it: the controller offers what the driver lets through, and no more."""
    if cns != Identify.CONTROLLER:
        return data
    page = bytearray(data)
    page[77] = min(page[77] or _MOST_PAGES, _MOST_PAGES)
    page[259] = min(page[259], EVENTS - 1)
    page[516:520] = NAMESPACE.to_bytes(4, "little")
    page[520:522] = (int.from_bytes(page[520:522], "little") & _DATASET_MANAGEMENT).to_bytes(2, "little")
    for start, end in _NOT_OFFERED:
        page[start:end] = bytes(end - start)
    return bytes(page)


def edited_result(opcode: int, detail: int, result: int) -> int:
    """Dword 0 of a completion as the guest gets it: not more queues than the driver has.  `detail` is the command's dword 10."""
    if opcode not in (AdminOpcode.SET_FEATURES, AdminOpcode.GET_FEATURES) or detail & 0xFF != Feature.NUMBER_OF_QUEUES:
        return result
    if opcode == AdminOpcode.GET_FEATURES and detail >> 8 & 7 == _CAPABILITIES:
        return result
    return min(result & 0xFFFF, QUEUES - 1) | min(result >> 16, QUEUES - 1) << 16


_CAPABILITIES = 3
"""SEL of Get Features that asks what can be done with a feature."""
