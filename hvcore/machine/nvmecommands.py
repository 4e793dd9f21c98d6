"""What NVMe commands do (NVM Express Base Specification 1.4, sections 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..spec.nvme import PAGE, SELECT_QUEUE, AdminOpcode, Command, Feature, Identify, LogPage, NvmOpcode, Status
from .disk import BLOCK
from .nvmedata import (
    EVENT_LIMIT,
    MAX_TRANSFER,
    NAMESPACE,
    active_namespaces,
    identify_controller,
    identify_namespace,
    namespace_descriptors,
)
from .nvmequeue import IO_QUEUES, MAX_ENTRIES, VECTORS, CompletionQueue, Reply, SubmissionQueue

if TYPE_CHECKING:
    from .nvme import Nvme

__all__ = ["ADMIN", "IO"]

Handler = Callable[["Nvme", Command], Reply | None]

BROADCAST = 0xFFFFFFFF
"""A namespace id that means all of them."""

_CONTIGUOUS, _INTERRUPTS = 1 << 0, 1 << 1
_SAVE = 1 << 31
_LAST_ACTIVE = 0xFFFFFFFE
_SUPPORTED_SELECT, _DEFAULT_SELECTS, _CHANGEABLE = 3, (1, 2), 1 << 2
_SMART_SIZE = _SLOTS_SIZE = 512
_ERROR_SIZE = 64
_LOG_SIZES = {LogPage.ERROR: _ERROR_SIZE, LogPage.SMART: _SMART_SIZE, LogPage.FIRMWARE_SLOT: _SLOTS_SIZE}
_DEFAULTS: dict[int, int] = {Feature.ARBITRATION: 0, Feature.POWER_MANAGEMENT: 0, Feature.TEMPERATURE_THRESHOLD: 0x157,
                             Feature.ERROR_RECOVERY: 0, Feature.VOLATILE_WRITE_CACHE: 1, Feature.INTERRUPT_COALESCING: 0,
                             Feature.INTERRUPT_VECTOR: 0, Feature.WRITE_ATOMICITY: 0, Feature.ASYNC_EVENTS: 0}
_QUEUE_COUNT = (IO_QUEUES - 1) * 0x10001
"""I/O submission and completion queues, less one each."""

_READ_ONLY = (Feature.INTERRUPT_VECTOR,)
_NEVER_COALESCED = 1 << 16


# Admin commands

def _identify(controller: Nvme, c: Command) -> Reply:
    description, blocks = controller.description, controller.disk.blocks
    cns = c.cdw10 & 0xFF
    if cns == Identify.CONTROLLER:
        return Reply(controller.send(c, identify_controller(description)))
    if cns == Identify.ACTIVE_NAMESPACES:
        return Reply(Status.INVALID_NAMESPACE if c.nsid >= _LAST_ACTIVE else controller.send(c, active_namespaces(c.nsid)))
    if cns not in (Identify.NAMESPACE, Identify.NAMESPACE_DESCRIPTORS):
        return Reply(Status.INVALID_FIELD)
    if c.nsid != NAMESPACE:
        return Reply(Status.INVALID_NAMESPACE)
    page = identify_namespace(description, blocks) if cns == Identify.NAMESPACE else namespace_descriptors(description)
    return Reply(controller.send(c, page))


def _create_cq(controller: Nvme, c: Command) -> Reply:
    number, size, vector = SELECT_QUEUE.get(c.cdw10, "QID"), SELECT_QUEUE.get(c.cdw10, "QSIZE") + 1, c.cdw11 >> 16
    wrong = _wrong_queue(controller, c, number in controller.completions)
    if wrong:
        return Reply(wrong)
    if vector >= VECTORS:
        return Reply(Status.INVALID_VECTOR)
    controller.completions[number] = CompletionQueue(number, c.prp1, size, vector, bool(c.cdw11 & _INTERRUPTS))
    return Reply()


def _create_sq(controller: Nvme, c: Command) -> Reply:
    number, size, cq = SELECT_QUEUE.get(c.cdw10, "QID"), SELECT_QUEUE.get(c.cdw10, "QSIZE") + 1, c.cdw11 >> 16
    wrong = _wrong_queue(controller, c, number in controller.submissions)
    if wrong:
        return Reply(wrong)
    if cq == 0 or cq not in controller.completions:
        return Reply(Status.CQ_INVALID)
    controller.submissions[number] = SubmissionQueue(number, c.prp1, size, controller.completions[cq])
    return Reply()


def _wrong_queue(controller: Nvme, c: Command, exists: bool) -> Status | None:
    """What is wrong with a queue to be created; None where nothing is."""
    number, size = SELECT_QUEUE.get(c.cdw10, "QID"), SELECT_QUEUE.get(c.cdw10, "QSIZE") + 1
    if not 1 <= number <= IO_QUEUES or exists:
        return Status.INVALID_QUEUE_ID
    if not 2 <= size <= MAX_ENTRIES:
        return Status.INVALID_QUEUE_SIZE
    if c.prp1 % PAGE:
        return Status.PRP_OFFSET_INVALID
    return None if c.cdw11 & _CONTIGUOUS and controller.entry_sizes_set else Status.INVALID_FIELD


def _delete_sq(controller: Nvme, c: Command) -> Reply:
    number = SELECT_QUEUE.get(c.cdw10, "QID")
    if number == 0 or controller.submissions.pop(number, None) is None:
        return Reply(Status.INVALID_QUEUE_ID)
    return Reply()


def _delete_cq(controller: Nvme, c: Command) -> Reply:
    number = SELECT_QUEUE.get(c.cdw10, "QID")
    if number == 0 or number not in controller.completions:
        return Reply(Status.INVALID_QUEUE_ID)
    if any(q.completions.number == number for q in controller.submissions.values()):
        return Reply(Status.INVALID_QUEUE_DELETION)
    del controller.completions[number]
    return Reply()


def _set_features(controller: Nvme, c: Command) -> Reply:
    feature = c.cdw10 & 0xFF
    if c.cdw10 & _SAVE:
        return Reply(Status.FEATURE_NOT_SAVEABLE)
    if feature == Feature.NUMBER_OF_QUEUES:
        return _set_queues(controller, c.cdw11)
    if feature not in _DEFAULTS:
        return Reply(Status.INVALID_FIELD)
    if feature in _READ_ONLY:
        return Reply(Status.FEATURE_NOT_CHANGEABLE)
    controller.features[feature] = c.cdw11
    return Reply()


def _set_queues(controller: Nvme, wanted: int) -> Reply:
    """Number of Queues: the answer is what there is, whatever was wanted (section 5.21.1.7)."""
    if 0xFFFF in (wanted & 0xFFFF, wanted >> 16):
        return Reply(Status.INVALID_FIELD)
    if len(controller.submissions) > 1 or len(controller.completions) > 1:
        return Reply(Status.COMMAND_SEQUENCE)
    return Reply(result=_QUEUE_COUNT)


def _get_features(controller: Nvme, c: Command) -> Reply:
    feature, select = c.cdw10 & 0xFF, c.cdw10 >> 8 & 7
    if feature not in _DEFAULTS and feature != Feature.NUMBER_OF_QUEUES:
        return Reply(Status.INVALID_FIELD)
    if select == _SUPPORTED_SELECT:
        return Reply(result=0 if feature in _READ_ONLY else _CHANGEABLE)
    if feature == Feature.NUMBER_OF_QUEUES:
        return Reply(result=_QUEUE_COUNT)
    if feature == Feature.INTERRUPT_VECTOR:
        return _vector_configuration(c.cdw11 & 0xFFFF)
    current = {} if select in _DEFAULT_SELECTS else controller.features
    return Reply(result=current.get(feature, _DEFAULTS[feature]))


def _vector_configuration(vector: int) -> Reply:
    """Interrupt Vector Configuration (section 5.21.1.9): nothing is ever coalesced."""
    return Reply(Status.INVALID_FIELD) if vector >= VECTORS else Reply(result=_NEVER_COALESCED | vector)


def _abort(controller: Nvme, c: Command) -> Reply:
    """Only held event requests can be aborted: every other command is done before the next is fetched."""
    queue, cid = c.cdw10 & 0xFFFF, c.cdw10 >> 16
    if queue or cid not in controller.held_events:
        return Reply(result=1)
    controller.held_events.remove(cid)
    controller.complete(controller.submissions[0], cid, Reply(Status.ABORT_REQUESTED))
    return Reply()


def _async_event(controller: Nvme, c: Command) -> Reply | None:
    """Held until it is aborted: nothing happens here that would be an event."""
    if len(controller.held_events) >= EVENT_LIMIT:
        return Reply(Status.ASYNC_EVENT_LIMIT)
    controller.held_events.append(c.cid)
    return None


def _get_log_page(controller: Nvme, c: Command) -> Reply:
    """Logs in which nothing is recorded: zeros."""
    page, wanted = c.cdw10 & 0xFF, ((c.cdw10 >> 16 | (c.cdw11 & 0xFFFF) << 16) + 1) * 4
    if page not in _LOG_SIZES:
        return Reply(Status.INVALID_LOG_PAGE)
    return Reply(controller.send(c, bytes(min(wanted, _LOG_SIZES[LogPage(page)]))))


# I/O commands

def _blocks(controller: Nvme, c: Command) -> tuple[int, int] | Status:
    """First block and number of blocks of a command, or what is wrong with them."""
    first, count = c.cdw10 | c.cdw11 << 32, (c.cdw12 & 0xFFFF) + 1
    if c.nsid != NAMESPACE:
        return Status.INVALID_NAMESPACE
    return Status.LBA_OUT_OF_RANGE if first + count > controller.disk.blocks else (first, count)


def _moved(controller: Nvme, c: Command) -> tuple[int, int] | Status:
    """The same of a command that moves them."""
    blocks = _blocks(controller, c)
    return blocks if isinstance(blocks, Status) or blocks[1] * BLOCK <= MAX_TRANSFER else Status.INVALID_FIELD


def _read(controller: Nvme, c: Command) -> Reply:
    blocks = _moved(controller, c)
    if isinstance(blocks, Status):
        return Reply(blocks)
    return Reply(controller.send(c, controller.disk.read(*blocks)))


def _write(controller: Nvme, c: Command) -> Reply:
    blocks = _moved(controller, c)
    if isinstance(blocks, Status):
        return Reply(blocks)
    data = controller.receive(c, blocks[1] * BLOCK)
    if isinstance(data, Status):
        return Reply(data)
    controller.disk.write(blocks[0], data)
    return Reply()


def _write_zeroes(controller: Nvme, c: Command) -> Reply:
    blocks = _blocks(controller, c)
    if isinstance(blocks, Status):
        return Reply(blocks)
    controller.disk.zero(*blocks)
    return Reply()


def _flush(controller: Nvme, c: Command) -> Reply:
    """Nothing is cached."""
    return Reply(Status.SUCCESS if c.nsid in (NAMESPACE, BROADCAST) else Status.INVALID_NAMESPACE)


def _dataset_management(controller: Nvme, c: Command) -> Reply:
    """A hint, accepted; deallocated blocks keep their content."""
    return Reply(Status.SUCCESS if c.nsid == NAMESPACE else Status.INVALID_NAMESPACE)


ADMIN: dict[int, Handler] = {
    AdminOpcode.DELETE_SQ: _delete_sq, AdminOpcode.CREATE_SQ: _create_sq, AdminOpcode.GET_LOG_PAGE: _get_log_page,
    AdminOpcode.DELETE_CQ: _delete_cq, AdminOpcode.CREATE_CQ: _create_cq, AdminOpcode.IDENTIFY: _identify, AdminOpcode.ABORT: _abort,
    AdminOpcode.SET_FEATURES: _set_features, AdminOpcode.GET_FEATURES: _get_features, AdminOpcode.ASYNC_EVENT_REQUEST: _async_event}
"""Commands of the admin queue by opcode; a handler that returns None holds its command."""

IO: dict[int, Handler] = {NvmOpcode.FLUSH: _flush, NvmOpcode.WRITE: _write, NvmOpcode.READ: _read, NvmOpcode.WRITE_ZEROES: _write_zeroes,
                          NvmOpcode.DATASET_MANAGEMENT: _dataset_management}
"""Commands of the I/O queues by opcode."""
