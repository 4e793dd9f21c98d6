"""The driver itself: what each of the guest's commands comes to, from the guest's submission queue to its completion queue."""

from ...machine.bus import Bus
from ...machine.clock import Clock
from ...machine.cpu import ACCESS_NS
from ...machine.memory import PAGE, Memory
from ...spec.nvme import (
    ADMIN_QUEUES,
    CC,
    COMMAND_SIZE,
    COMPLETION_SIZE,
    CSTS,
    DO_NOT_RETRY,
    DOORBELLS,
    AdminOpcode,
    Command,
    Completion,
    Identify,
    NvmOpcode,
    Status,
)
from ..heap import Panic
from ..layout import SECRET_SIZE, Part
from ..platform import Console
from . import crypt
from .commands import NAMESPACE, STAND_INS, Answer, Order, admit, edited_identify, edited_result
from .guestmemory import GuestMemory, prp_pages
from .layout import SLOTS, Control, Cq, Pages, Phase, Record, Sq, State, Tag
from .queues import Queues

__all__ = ["Controller", "Driver"]

_RDY, _CFS = CSTS["RDY"].mask, CSTS["CFS"].mask
_AQA, _ASQ, _ACQ, _CC, _CSTS = 0x24, 0x28, 0x30, 0x14, 0x1C
_GONE = 0xFFFF_FFFF
_WORTH_RETRYING = (Status.SUCCESS, Status.DATA_TRANSFER_ERROR)
_ANSWERED, _CORE = 1 << 63, 1


class Controller:
    """The registers of the controller itself, at `base` (host-physical); each access takes its time on `clock`."""

    def __init__(self, bus: Bus, base: int, clock: Clock):
        self.bus, self.base, self.clock = bus, base, clock

    def wait(self) -> None:
        """The time that an access takes passes."""
        self.clock.advance(ACCESS_NS)

    def read(self, offset: int, width: int = 4) -> int:
        """A register; all ones where the controller does not answer."""
        self.wait()
        return self.bus.read(self.base + offset, width)

    def write(self, offset: int, value: int, width: int = 4) -> None:
        """A register."""
        self.wait()
        self.bus.write(self.base + offset, width, value)

    @property
    def status(self) -> int:
        """CSTS."""
        return self.read(_CSTS)

    def doorbell(self, queue: int, completion: bool) -> int:
        """Offset of a queue's doorbell."""
        return DOORBELLS + 4 * (2 * queue + completion)


class Driver:
    """Drives `controller` for the guest of the core at [base, base + size); all it knows between two calls lies in its `pages`.

    `stubborn` is a core that panics where its first command does not complete, as the measured one; else the guest is told that its
    controller has failed.
    """

    def __init__(self, memory: Memory, base: int, size: int, pages: Pages, controller: Controller, console: Console, name: str,
                 stubborn: bool = False):
        self.memory, self.base, self.pages, self.controller = memory, base, pages, controller
        self.console, self.name, self.stubborn = console, name, stubborn
        self.state = State(memory, pages.state)
        self.guest = GuestMemory(memory, base, size)
        self.queues = Queues(self.state, pages, self.guest)

    @property
    def phase(self) -> int:
        """Where the driver stands, one of `Phase`."""
        return self.state.control[Control.PHASE]

    # --- the controller on and off

    def enable(self) -> None:
        """The guest has set CC.EN: the controller gets shadow admin queues."""
        control = self.state.control
        entries, completions = (ADMIN_QUEUES.get(control[Control.AQA], name) + 1 for name in ("ASQS", "ACQS"))
        cc, asq, acq = control[Control.CC], control[Control.ASQ], control[Control.ACQ]
        self.state.forget()
        if CC.get(cc, "MPS") or CC.get(cc, "CSS") or CC.get(cc, "AMS") or entries < 2 or completions < 2:
            return self.fail("the guest asks for what the driver does not do")
        if not self.guest.owns(asq, entries * COMMAND_SIZE) or not self.guest.owns(acq, completions * COMPLETION_SIZE):
            return self.fail("the guest's admin queues do not lie in its memory")
        self.memory.write(self.pages.cq(0), bytes(completions * COMPLETION_SIZE))
        self.queues.open_cq(0, completions, acq, skew=1)
        self.queues.open_sq(0, entries, asq, 0)
        self.controller.write(_AQA, ADMIN_QUEUES.make(ASQS=SLOTS - 1, ACQS=completions - 1))
        self.controller.write(_ASQ, self.pages.sq(0), 8)
        self.controller.write(_ACQ, self.pages.cq(0), 8)
        self.configure(CC["EN"].mask)
        control[Control.PHASE] = Phase.ENABLING

    def disable(self) -> None:
        """The guest has cleared CC.EN: what was under way is gone."""
        self.configure(0)
        self.state.forget()
        self.state.control[Control.PHASE] = Phase.OFF

    def configure(self, enable: int) -> None:
        """CC as the controller has it: the guest's shutdown notification, the driver's entry sizes."""
        notification = CC.get(self.state.control[Control.CC], "SHN")
        self.controller.write(_CC, enable | CC.make(SHN=notification, IOSQES=6, IOCQES=4))

    def notify_shutdown(self) -> None:
        """The guest has changed CC.SHN."""
        self.configure(CC["EN"].mask if self.phase in (Phase.ENABLING, Phase.ASKING, Phase.READY) else 0)

    def fail(self, why: str) -> None:
        """The guest sees a fatal status until it resets the controller."""
        self.console.print(f"nvme: {self.name}: {why}")
        self.state.control[Control.PHASE] = Phase.FAILED

    def status(self) -> int:
        """CSTS as the guest gets it: ready when the driver is."""
        status, phase = self.controller.status, self.phase
        if status == _GONE or phase == Phase.READY:
            return status
        return status & ~_RDY | (_CFS if phase == Phase.FAILED else 0)

    def _settle(self) -> None:
        """On the way to READY: when the controller is, the core asks for the namespace."""
        status = self.controller.status
        if status == _GONE:
            return
        if status & _CFS:
            if self.stubborn:
                raise Panic(f"nvme: {self.name}: no answer to Identify Namespace, CSTS={status:#x}")
            self.fail(f"the controller has failed, CSTS={status:#x}")
        elif self.phase == Phase.ENABLING and status & _RDY:
            self._ask()

    def _ask(self) -> None:
        """The core's own command: Identify Namespace."""
        tag = self.state.tag(0)
        tag[Tag.USED], tag[Tag.OWNER] = 1, _CORE
        self.state.control[Control.PHASE] = Phase.ASKING
        self._submit(0, 0, Command(AdminOpcode.IDENTIFY, nsid=NAMESPACE, prp1=self.pages.buffer(0), cdw10=Identify.NAMESPACE))

    def _answered(self, entry: Completion) -> None:
        """The namespace's size and format are known: the guest may begin."""
        page = self.memory.read(self.pages.buffer(0), PAGE)
        block_bits = page[128 + 4 * (page[26] & 15) + 2]
        usable = not entry.status & ~DO_NOT_RETRY and 1 << block_bits == crypt.BLOCK
        blocks = int.from_bytes(page[:8], "little") if usable else 0
        self.state.control[Control.BLOCKS] = blocks
        self.state.control[Control.PHASE] = Phase.READY
        q = self.state.cq(0)
        q[Cq.ACKED] = q[Cq.SEEN]
        self.controller.write(self.controller.doorbell(0, True), q[Cq.SEEN])
        self.console.print(f"nvme: {self.name}: {blocks} blocks, encrypted from block {crypt.first_encrypted(blocks)} on" if usable else
                           f"nvme: {self.name}: no namespace of blocks of {crypt.BLOCK} bytes: the guest gets none")

    # --- doorbells

    def ring_sq(self, number: int, tail: int) -> None:
        """The guest has put commands into a submission queue."""
        if self.phase == Phase.READY and number in self.state.live(Control.SQS):
            q = self.state.sq(number)
            if tail < q[Sq.SIZE]:
                q[Sq.TAIL] = tail

    def ring_cq(self, number: int, head: int) -> None:
        """The guest has taken completions: the controller is told, but never of more than the guest was given."""
        if self.phase != Phase.READY or number not in self.state.live(Control.CQS):
            return
        q = self.state.cq(number)
        size = q[Cq.SIZE]
        if head >= size:
            return
        shadow = (head + q[Cq.SKEW]) % size
        if (shadow - q[Cq.ACKED]) % size <= (q[Cq.SEEN] - q[Cq.ACKED]) % size:
            q[Cq.ACKED] = shadow
            self.controller.write(self.controller.doorbell(number, True), shadow)

    # --- commands and completions

    def poll(self) -> None:
        """Goes on: completions to the guest, then its commands to the controller.  To be called whenever the core has the processor."""
        if self.phase in (Phase.ENABLING, Phase.ASKING):
            self._settle()
        if self.phase not in (Phase.ASKING, Phase.READY):
            return
        for number in self.state.live(Control.CQS):
            self._drain(number)
        while self.phase == Phase.READY and self._fetch_round():
            pass

    def _fetch_round(self) -> bool:
        """One command from each submission queue in turn; whether there was any."""
        turn = self.state.control[Control.TURN]
        order = sorted(self.state.live(Control.SQS), key=lambda n: (n <= turn, n))
        return sum(map(self._fetch, order)) > 0

    def _fetch(self, number: int) -> bool:
        """The next command of one of the guest's queues, where there is one and a tag for it."""
        q, free = self.state.sq(number), self.state.free_tag()
        if q[Sq.HEAD] == q[Sq.TAIL] or free is None or self.phase != Phase.READY:
            return False
        data = self.guest.read(q[Sq.BASE] + COMMAND_SIZE * q[Sq.HEAD], COMMAND_SIZE)
        if data is None:
            self.fail("a queue of the guest's does not lie in its memory")
            return False
        command = Command.unpack(data)
        if number == 0 and self.queues.must_wait(command):
            return False
        q[Sq.HEAD] = (q[Sq.HEAD] + 1) % q[Sq.SIZE]
        self.state.control[Control.TURN] = number
        self._take(number, free, command)
        return True

    def _take(self, number: int, free: int, command: Command) -> None:
        """Gives a command a tag and passes it on, or a stand-in where the core has the answer."""
        tag = self.state.tag(free)
        tag.clear(Tag.PIECES)
        tag[Tag.USED], tag[Tag.QUEUE], tag[Tag.CID] = 1, number, command.cid
        tag[Tag.OPCODE], tag[Tag.DETAIL] = command.opcode, command.cdw10
        order = None if number else self.queues.admit(command, tag)
        order = order or admit(command, bool(number), self.state.control[Control.BLOCKS])
        if isinstance(order, Order) and order.length:
            order = self._with_data(free, tag, command, order)
        if isinstance(order, Answer):
            tag[Tag.ANSWER] = _ANSWERED | order.status << 32 | order.result
            order = Order(STAND_INS[bool(number)])
        self._submit(number, free, order.command)

    def _with_data(self, free: int, tag: Record, command: Command, order: Order) -> Order | Answer:
        """The order with the tag's buffer in it, filled with what goes to the disk; the guest's pages are noted."""
        pages = prp_pages(self.guest, command.prp1, command.prp2, order.length)
        if isinstance(pages, Status):
            return Answer(pages)
        tag[Tag.LENGTH], tag[Tag.OUTWARD], tag[Tag.LBA] = order.length, order.outward, order.lba
        for i, page in enumerate(pages):
            tag[Tag.PIECES + 8 * i] = page
        data: bytes | None = bytes(order.length)
        if order.outward:
            parts = [self.guest.read(*piece) for piece in self._pieces(tag)]
            data = None if None in parts else b"".join(p for p in parts if p)
        if data is None:
            return Answer(Status.DATA_TRANSFER_ERROR)
        if command.opcode == NvmOpcode.WRITE and order.outward:
            data = crypt.encrypt(self._key(), order.lba, data, self._first())
        self.memory.write(self.pages.buffer(free), data)
        second = 0
        if order.length > PAGE:
            second = self.pages.buffer(free) + PAGE if order.length <= 2 * PAGE else self.pages.prp_list(free)
        return order._replace(command=order.command._replace(prp1=self.pages.buffer(free), prp2=second))

    def _pieces(self, tag: Record) -> list[tuple[int, int]]:
        """Where a tag's data lie in the guest's memory: (guest-physical address, bytes)."""
        pieces: list[tuple[int, int]] = []
        left = tag[Tag.LENGTH]
        while left:
            address = tag[Tag.PIECES + 8 * len(pieces)] & (-PAGE if pieces else -1)
            pieces.append((address, min(left, PAGE - address % PAGE)))
            left -= pieces[-1][1]
        return pieces

    def _submit(self, number: int, tag: int, command: Command) -> None:
        """A command to the controller, by the tag's number."""
        q = self.state.sq(number)
        self.memory.write(self.pages.sq(number) + COMMAND_SIZE * q[Sq.SLOT], command._replace(cid=tag).pack())
        q[Sq.SLOT] = (q[Sq.SLOT] + 1) % SLOTS
        self.controller.write(self.controller.doorbell(number, False), q[Sq.SLOT])

    def _drain(self, number: int) -> None:
        """Every completion that the controller has posted to one queue."""
        for _ in range(self.state.cq(number)[Cq.SIZE]):
            q = self.state.cq(number)
            if not q[Cq.SIZE] or self.phase not in (Phase.ASKING, Phase.READY):
                return
            entry = Completion.unpack(self.memory.read(self.pages.cq(number) + COMPLETION_SIZE * q[Cq.SEEN], COMPLETION_SIZE))
            if entry.phase != q[Cq.PHASE]:
                return
            index, turned = (q[Cq.SEEN] - q[Cq.SKEW]) % q[Cq.SIZE], q[Cq.SEEN] < q[Cq.SKEW]
            q[Cq.SEEN] = (q[Cq.SEEN] + 1) % q[Cq.SIZE]
            q[Cq.PHASE] ^= q[Cq.SEEN] == 0
            self._finish(q, index, entry._replace(phase=entry.phase ^ turned))

    def _finish(self, q: Record, index: int, entry: Completion) -> None:
        """One completion: the data to the guest, then the entry into its queue, where it has index `index`."""
        tag = self.state.tag(entry.cid) if entry.cid in self.state.tags() else None
        if tag is None:
            return self.fail("the controller completes a command that is none")
        if tag[Tag.OWNER] == _CORE:
            tag.clear(Tag.PIECES)
            return self._answered(entry)
        status, result = entry.status, edited_result(tag[Tag.OPCODE], tag[Tag.DETAIL], entry.result)
        if tag[Tag.ANSWER]:
            status, result = tag[Tag.ANSWER] >> 32 & 0x7FFF, tag[Tag.ANSWER] & 0xFFFF_FFFF
            status |= 0 if status in _WORTH_RETRYING else DO_NOT_RETRY
        elif not status:
            status = self._done(entry.cid, tag)
        source = tag[Tag.QUEUE]
        told = entry._replace(result=result, status=status, sq_id=source, sq_head=self.state.sq(source)[Sq.HEAD], cid=tag[Tag.CID] & 0xFFFF)
        tag.clear(Tag.PIECES)
        if not self.guest.write(q[Cq.BASE] + COMPLETION_SIZE * index, told.pack()):
            self.fail("a queue of the guest's does not lie in its memory")

    def _done(self, number: int, tag: Record) -> Status:
        """The controller has carried a command out: records follow, data go to the guest."""
        if not tag[Tag.QUEUE]:
            self.queues.done(tag)
        if not tag[Tag.LENGTH] or tag[Tag.OUTWARD]:
            return Status.SUCCESS
        data = self.memory.read(self.pages.buffer(number), tag[Tag.LENGTH])
        if tag[Tag.QUEUE] and tag[Tag.OPCODE] == NvmOpcode.READ:
            data = crypt.decrypt(self._key(), tag[Tag.LBA], data, self._first())
        elif not tag[Tag.QUEUE] and tag[Tag.OPCODE] == AdminOpcode.IDENTIFY:
            data = edited_identify(tag[Tag.DETAIL] & 0xFF, data)
        at = 0
        for address, size in self._pieces(tag):
            if not self.guest.write(address, data[at:at + size]):
                return Status.DATA_TRANSFER_ERROR
            at += size
        return Status.SUCCESS

    def _key(self) -> bytes:
        """The secret, as it lies in the core's memory now."""
        return self.memory.read(self.base + Part.SECRET, SECRET_SIZE)

    def _first(self) -> int:
        return crypt.first_encrypted(self.state.control[Control.BLOCKS])
