"""NVMe: controller registers, queue entries, opcodes and status codes (NVM Express Base Specification 1.4)."""

import struct
from enum import IntEnum
from typing import NamedTuple

from .bits import Access, Field, Layout, Register, mask

__all__ = ["ADMIN_QUEUES", "CAP", "CC", "COMMAND_SIZE", "COMPLETION_SIZE", "CSTS", "DOORBELLS", "DO_NOT_RETRY", "PAGE", "SELECT_QUEUE",
           "VERSION", "AdminOpcode", "Command", "Completion", "Feature", "Identify", "LogPage", "NvmOpcode", "Status", "registers"]

PAGE = 4096
"""Bytes of a memory page with CC.MPS = 0."""

DOORBELLS = 0x1000
"""Offset of the doorbells: with CAP.DSTRD = 0 the tail of submission queue y lies at +8y, the head of completion queue y at +8y+4."""

VERSION = 0x0001_0400
"""1.4."""

CAP = Layout("CAP", (Field("MQES", 15, 0, "queue entries, less one"), Field("CQR", 16, 16, "queues must be contiguous"),
                     Field("AMS", 18, 17), Field("TO", 31, 24, "time to ready, in 500 ms"), Field("DSTRD", 35, 32, "doorbell stride"),
                     Field("NSSRS", 36, 36), Field("CSS", 44, 37, "command sets"), Field("BPS", 45, 45), Field("MPSMIN", 51, 48),
                     Field("MPSMAX", 55, 52)))
CC = Layout("CC", (Field("EN", 0, 0, "enable"), Field("CSS", 6, 4, "command set"), Field("MPS", 10, 7, "page size"), Field("AMS", 13, 11),
                   Field("SHN", 15, 14, "shutdown notification"), Field("IOSQES", 19, 16), Field("IOCQES", 23, 20)))
CSTS = Layout("CSTS", (Field("RDY", 0, 0, "ready"), Field("CFS", 1, 1, "fatal status"), Field("SHST", 3, 2, "shutdown status"),
                       Field("NSSRO", 4, 4), Field("PP", 5, 5)))
ADMIN_QUEUES = Layout("AQA", (Field("ASQS", 11, 0, "entries, less one"), Field("ACQS", 27, 16, "entries, less one")))
SELECT_QUEUE = Layout("CDW10", (Field("QID", 15, 0), Field("QSIZE", 31, 16, "entries, less one")))


def registers(cap: int) -> tuple[Register, ...]:
    """The controller's registers (section 3.1) with capabilities `cap`; doorbells follow at `DOORBELLS`."""
    ro, rw, page = Access.RO, Access.RW, mask(63, 12)
    return (Register("CAP", 0x00, 64, ro, "3.1.1", CAP, reset=cap),
            Register("VS", 0x08, 32, ro, "3.1.2", reset=VERSION),
            Register("INTMS", 0x0C, 32, Access.W1S, "3.1.3"),
            Register("INTMC", 0x10, 32, Access.W1C, "3.1.4"),
            Register("CC", 0x14, 32, rw, "3.1.5", CC, write_mask=mask(23, 4) | 1),
            Register("CSTS", 0x1C, 32, ro, "3.1.6", CSTS),
            Register("AQA", 0x24, 32, rw, "3.1.8", ADMIN_QUEUES, write_mask=mask(27, 16) | mask(11)),
            Register("ASQ", 0x28, 64, rw, "3.1.9", write_mask=page),
            Register("ACQ", 0x30, 64, rw, "3.1.10", write_mask=page))


class AdminOpcode(IntEnum):
    """Section 5."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C


class NvmOpcode(IntEnum):
    """Section 6."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class Identify(IntEnum):
    """CNS of Identify (figure 244)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03


class LogPage(IntEnum):
    """Log page identifiers (figure 191)."""

    ERROR = 0x01
    SMART = 0x02
    FIRMWARE_SLOT = 0x03


class Feature(IntEnum):
    """Feature identifiers (figure 275)."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENTS = 0x0B


class Status(IntEnum):
    """Status of a completion: type in bits 10:8, code in bits 7:0 (section 4.6.1.2)."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    DATA_TRANSFER_ERROR = 0x004
    ABORT_REQUESTED = 0x007
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE = 0x00C
    PRP_OFFSET_INVALID = 0x013
    LBA_OUT_OF_RANGE = 0x080
    CQ_INVALID = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ASYNC_EVENT_LIMIT = 0x105
    INVALID_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E


DO_NOT_RETRY = 1 << 14
"""Status field bit: the same command would fail again."""

_COMMAND, _COMPLETION = struct.Struct("<BBHIQQQQ6I"), struct.Struct("<IIHHHH")
COMMAND_SIZE, COMPLETION_SIZE = _COMMAND.size, _COMPLETION.size


class Command(NamedTuple):
    """A submission queue entry (section 4.2): `prp1` and `prp2` are I/O virtual addresses; `flags` are the FUSE and PSDT bits."""

    opcode: int
    flags: int = 0
    cid: int = 0
    nsid: int = 0
    cdw2: int = 0
    mptr: int = 0
    prp1: int = 0
    prp2: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0

    @classmethod
    def unpack(cls, data: bytes) -> "Command":
        """From its 64 bytes."""
        return cls(*_COMMAND.unpack(data))

    def pack(self) -> bytes:
        """Its 64 bytes."""
        return _COMMAND.pack(*self)


class Completion(NamedTuple):
    """A completion queue entry (section 4.6).  `status` has 15 bits; `phase` tells a new entry from an old one."""

    result: int
    sq_head: int
    sq_id: int
    cid: int
    status: int
    phase: int

    @classmethod
    def unpack(cls, data: bytes) -> "Completion":
        """From its 16 bytes."""
        result, _, sq_head, sq_id, cid, last = _COMPLETION.unpack(data)
        return cls(result, sq_head, sq_id, cid, last >> 1, last & 1)

    def pack(self) -> bytes:
        """Its 16 bytes."""
        return _COMPLETION.pack(self.result, 0, self.sq_head, self.sq_id, self.cid, self.status << 1 | self.phase)
