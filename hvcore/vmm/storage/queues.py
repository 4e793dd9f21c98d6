"""The guest's queues: commands that make and delete them, and Abort, which names a command by its queue."""

from ...machine.memory import PAGE
from ...spec.nvme import CC, COMMAND_SIZE, COMPLETION_SIZE, SELECT_QUEUE, AdminOpcode, Command, Status
from .commands import EVENTS, Answer, Order
from .guestmemory import GuestMemory
from .layout import ENTRIES, QUEUES, SLOTS, Control, Cq, Pages, Record, Sq, State, Tag

__all__ = ["Queues"]

_CONTIGUOUS = 1 << 0
_ENTRY_SIZES = (6, 4)


class Queues:
    """What the driver's records say of queues, and what changes them."""

    def __init__(self, state: State, pages: Pages, guest: GuestMemory):
        self.state, self.pages, self.guest = state, pages, guest

    def admit(self, c: Command, tag: Record) -> Order | Answer | None:
        """An admin command that concerns queues, with the queue's data noted in `tag`; None for any other."""
        if c.opcode == AdminOpcode.ASYNC_EVENT_REQUEST and self._events() > EVENTS:
            return Answer(Status.ASYNC_EVENT_LIMIT)
        handlers = {AdminOpcode.CREATE_CQ: self._create_cq, AdminOpcode.CREATE_SQ: self._create_sq,
                    AdminOpcode.DELETE_CQ: self._delete_cq, AdminOpcode.DELETE_SQ: self._delete_sq, AdminOpcode.ABORT: self._abort}
        handler = next((h for opcode, h in handlers.items() if opcode == c.opcode), None)
        if handler is None:
            return None
        return Answer(Status.INVALID_FIELD) if c.flags else handler(c, tag)

    def must_wait(self, c: Command) -> bool:
        """Whether a command that deletes a submission queue comes before those of this queue are through."""
        if c.opcode != AdminOpcode.DELETE_SQ:
            return False
        number = SELECT_QUEUE.get(c.cdw10, "QID")
        return any(self.state.tag(t)[Tag.QUEUE] == number != 0 for t in self.state.tags())

    def done(self, tag: Record) -> None:
        """The controller has carried out the command in `tag`: the records follow."""
        opcode, number = tag[Tag.OPCODE], tag[Tag.NUMBER]
        if opcode == AdminOpcode.CREATE_CQ:
            self.open_cq(number, tag[Tag.SIZE], tag[Tag.BASE])
        elif opcode == AdminOpcode.CREATE_SQ:
            self.open_sq(number, tag[Tag.SIZE], tag[Tag.BASE], tag[Tag.CQ])
        elif opcode == AdminOpcode.DELETE_CQ:
            self.state.cq(number).clear()
            self.state.mark(Control.CQS, number, False)

    def open_cq(self, number: int, size: int, base: int, skew: int = 0) -> None:
        """A completion queue of the guest's at `base` (guest-physical)."""
        q = self.state.cq(number)
        q.clear()
        for word, value in ((Cq.SIZE, size), (Cq.BASE, base), (Cq.PHASE, 1), (Cq.SKEW, skew)):
            q[word] = value
        self.state.mark(Control.CQS, number, True)

    def open_sq(self, number: int, size: int, base: int, cq: int) -> None:
        """A submission queue of the guest's at `base` (guest-physical)."""
        q = self.state.sq(number)
        q.clear()
        for word, value in ((Sq.SIZE, size), (Sq.BASE, base), (Sq.CQ, cq)):
            q[word] = value
        self.state.mark(Control.SQS, number, True)

    def _events(self) -> int:
        """Event requests under way, with the one that has just got its tag."""
        tags = map(self.state.tag, self.state.tags())
        return sum(not t[Tag.QUEUE] and t[Tag.OPCODE] == AdminOpcode.ASYNC_EVENT_REQUEST and not t[Tag.ANSWER] for t in tags)

    def _wrong(self, c: Command, live: Control, entry: int) -> Status | None:
        """What is wrong with a queue to be made of entries of `entry` bytes; None where nothing is."""
        number, size = SELECT_QUEUE.get(c.cdw10, "QID"), SELECT_QUEUE.get(c.cdw10, "QSIZE") + 1
        if not 1 <= number <= QUEUES or number in self.state.live(live):
            return Status.INVALID_QUEUE_ID
        if not 2 <= size <= ENTRIES:
            return Status.INVALID_QUEUE_SIZE
        if c.prp1 % PAGE:
            return Status.PRP_OFFSET_INVALID
        cc = self.state.control[Control.CC]
        if not c.cdw11 & _CONTIGUOUS or (CC.get(cc, "IOSQES"), CC.get(cc, "IOCQES")) != _ENTRY_SIZES:
            return Status.INVALID_FIELD
        return None if self.guest.owns(c.prp1, entry * size) else Status.INVALID_FIELD

    def _create_cq(self, c: Command, tag: Record) -> Order | Answer:
        if wrong := self._wrong(c, Control.CQS, COMPLETION_SIZE):
            return Answer(wrong)
        number, size = SELECT_QUEUE.get(c.cdw10, "QID"), SELECT_QUEUE.get(c.cdw10, "QSIZE") + 1
        tag[Tag.NUMBER], tag[Tag.SIZE], tag[Tag.BASE] = number, size, c.prp1
        self.guest.memory.write(self.pages.cq(number), bytes(size * COMPLETION_SIZE))
        return Order(Command(c.opcode, prp1=self.pages.cq(number), cdw10=c.cdw10, cdw11=c.cdw11))

    def _create_sq(self, c: Command, tag: Record) -> Order | Answer:
        if wrong := self._wrong(c, Control.SQS, COMMAND_SIZE):
            return Answer(wrong)
        cq = c.cdw11 >> 16
        if not 1 <= cq <= QUEUES:
            return Answer(Status.CQ_INVALID)
        number, size = SELECT_QUEUE.get(c.cdw10, "QID"), SELECT_QUEUE.get(c.cdw10, "QSIZE") + 1
        tag[Tag.NUMBER], tag[Tag.SIZE], tag[Tag.BASE], tag[Tag.CQ] = number, size, c.prp1, cq
        return Order(Command(c.opcode, prp1=self.pages.sq(number), cdw10=number | SLOTS - 1 << 16, cdw11=c.cdw11))

    def _delete_sq(self, c: Command, tag: Record) -> Order | Answer:
        """From here on nothing is fetched from it; `must_wait` has seen that nothing of it is under way."""
        number = SELECT_QUEUE.get(c.cdw10, "QID")
        if number == 0 or number not in self.state.live(Control.SQS):
            return Answer(Status.INVALID_QUEUE_ID)
        tag[Tag.NUMBER] = number
        self.state.mark(Control.SQS, number, False)
        return Order(Command(c.opcode, cdw10=number))

    def _delete_cq(self, c: Command, tag: Record) -> Order | Answer:
        number = SELECT_QUEUE.get(c.cdw10, "QID")
        if number == 0 or number not in self.state.live(Control.CQS):
            return Answer(Status.INVALID_QUEUE_ID)
        tag[Tag.NUMBER] = number
        return Order(Command(c.opcode, cdw10=number))

    def _abort(self, c: Command, tag: Record) -> Order | Answer:
        """The command's id becomes its tag; one that is not under way cannot be aborted (dword 0 says 1)."""
        queue, cid = c.cdw10 & 0xFFFF, c.cdw10 >> 16
        for number in self.state.tags():
            other = self.state.tag(number)
            if (other[Tag.QUEUE], other[Tag.CID]) == (queue, cid):
                return Order(Command(c.opcode, cdw10=queue | number << 16))
        return Answer(Status.SUCCESS, 1)
