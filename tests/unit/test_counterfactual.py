"""What blocked DMA would have done: against machines whose unit is off, where the same requests do it."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore import Config
from hvcore.errors import HvlabError
from hvcore.inspect.counterfactual import read_counterfactual
from hvcore.inspect.trace import read_trace
from hvcore.machine.dma import DmaFabric
from hvcore.machine.memory import Memory
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.interrupts import as_written
from hvcore.vmm.core import stub
from hvcore.vmm.layout import Part

PAGE = 4096
PATTERN = 0x1122334455667788
EDU = 0x0018


# --- whole machines

def test_a_write_to_the_stub_shows_the_stub_and_the_pattern(machine):
    run = machine.boot(Config())
    length = len(stub()) // 8 * 8
    run.guest.command(f"dma w {run.vmm.base:#x} {length} {PATTERN:#x}")
    told = run.would_have(run.dma[-1])
    assert (told.source, told.access, told.address, told.length) == (EDU, "write", run.vmm.base, length)
    assert told.before == stub()[:length] and told.after == PATTERN.to_bytes(8, "little") * (length // 8)
    assert told.lies == ("the core's text",)
    assert told.reason == 5
    assert machine.pc.memory.read(run.vmm.base, len(stub())) == stub()
    assert b"".join(r.now for r in told.rows) == told.before and b"".join(r.then for r in told.rows) == told.after
    assert told.changed == sum(a != b for a, b in zip(told.before, told.after, strict=True))


def test_the_same_write_does_that_where_no_unit_stops_it(machine):
    run = machine.boot(Config())
    target = run.vmm.base + Part.SECRET + 4
    run.guest.command(f"dma w {target:#x} 24 {PATTERN:#x}")
    told = run.would_have(run.dma[-1])
    row = [(r.address, len(r.now)) for r in told.rows]
    assert row == [(target, 12), (target + 12, 12)]       # rows end at multiples of 16
    open_run = machine.boot(Config(VTD_TRANS=False))
    assert open_run.vmm.base == run.vmm.base
    assert machine.pc.memory.read(target, 24) == told.before
    open_run.guest.command(f"dma w {target:#x} 24 {PATTERN:#x}")
    assert machine.pc.memory.read(target, 24) == told.after


def test_a_read_of_the_secret_shows_what_would_have_leaked(machine):
    run = machine.boot(Config())
    secret = run.vmm.base + Part.SECRET
    run.guest.command(f"dma r {secret:#x} 32")
    asked = next(d for d in reversed(run.dma) if d.iova == secret)
    told = run.would_have(asked)
    assert (told.before, told.after, told.lies) == (machine.pc.memory.read(secret, 32), None, ("the core's secret",))
    assert "32 bytes of it would have been read" in str(told)
    open_run = machine.boot(Config(VTD_TRANS=False))
    leaked = open_run.guest.command(f"dma r {secret:#x} 32")
    assert told.before == b"".join(bytes.fromhex("".join(line.split()[1:17])) for line in leaked.splitlines()[:2])


def test_a_fault_record_leads_to_its_request(machine):
    """The first fault of a boot that ends below RAM's end: the drive's own queue, whose command would have been read."""
    run = machine.boot(Config())
    fault = run.faults[0]
    told = run.would_have(fault)
    assert (told.source, told.access, told.iova, told.reason) == (fault.source, "read", fault.address, 6)
    assert told.before == machine.pc.memory.read(fault.address, told.length)
    assert told.lies == ("memory that firmware's E820 calls usable",)


def test_what_lies_there_is_named_by_its_use(machine):
    run = machine.boot(Config())
    for address, name in ((run.domains[0].root, "second-level tables of domain 0"), (run.vmm.base + Part.VMCB, "the core's vmcb"),
                          (machine.core.nested_root(), "the guest's nested tables")):
        run.guest.command(f"dma w {address:#x} 8 0x1")
        assert run.would_have(run.dma[-1]).lies[0].startswith(name)


def test_what_cannot_be_told(machine):
    run = machine.boot(Config())
    with pytest.raises(HvlabError, match="is no request"):
        run.would_have("x")
    run.guest.command("dma w 0x3000000 8 0x1")
    with pytest.raises(HvlabError, match="was not blocked"):
        run.would_have(next(d for d in run.dma if d.result == "ok"))
    fault = run.faults[0]
    machine.pc.fabric.trace.clear()
    with pytest.raises(HvlabError, match="not kept any more"):
        run.would_have(fault)
    machine.boot(Config())
    with pytest.raises(HvlabError, match="is over"):
        run.would_have(fault)


def test_how_it_is_shown(machine):
    run = machine.boot(Config())
    run.guest.command(f"dma w {run.vmm.base + Part.BLANK:#x} 16 0x00ff00ff00ff00ff")
    told = run.would_have(run.dma[-1])
    assert told.changed == 8
    text = str(told)
    assert "00 00 00 00" in text and "ff 00 ff 00" in text and "8 of 16 bytes would be others" in text
    assert told._repr_html_().count("<mark>") == 16      # each changed byte as it is and as it would be
    assert list(told.frame["changed"]) == [8]
    assert told.to_json()["after"] == told.after.hex()


# --- the record alone

class _Stops:
    """A unit that blocks every page but those of `free`."""

    def __init__(self, free: set[int]):
        self.free = free

    def remap(self, request: DmaRequest) -> int | RemapFault:
        return request.iova if request.iova // PAGE in self.free else RemapFault(request, 0, 5, request.iova & -PAGE)

    def interrupt(self, source: int, address: int, data: int):
        return RemapFault(DmaRequest(source, address, 4, Direction.WRITE), 0, 0x25, 0)


def nothing(address: int) -> str:
    return f"page {address // PAGE}"


@settings(max_examples=200)
@given(st.integers(0, 1 << 48))
def test_it_is_what_memory_would_be(seed):
    """Requests over several pages, some of which pass: the rest is carried out without the unit, and that is what was told."""
    r = Random(seed)
    memory = Memory([(0, 8 * PAGE)])
    memory.write(0, r.randbytes(8 * PAGE))
    free = {page for page in range(10) if r.random() < 0.5}
    length = r.choice((1, 4, 8, 100, PAGE, 9000))
    request = DmaRequest(EDU, r.randrange(8 * PAGE), length, r.choice(list(Direction)))
    data = r.randbytes(length) if request.access is Direction.WRITE else b""
    fabric = DmaFabric(memory, lambda *_: _Stops(free))
    result = fabric.issue(request, data)
    dma, = read_trace(fabric.trace, 1)
    if dma.result != "blocked":
        return
    before = memory.read(0, 8 * PAGE)
    told = read_counterfactual(memory, dma, nothing)
    stopped = next(page for page in range(request.iova // PAGE, 11) if page not in free)
    assert told.address == max(request.iova, stopped * PAGE)
    rest = min(length - result.carried, PAGE)
    end = min(told.address + rest, 8 * PAGE)
    assert told.before == before[told.address:end] and memory.read(0, 8 * PAGE) == before
    assert ("no memory answers" in told.remark) == (end < told.address + rest)
    assert (f"the first {rest} of" in told.remark) == (rest < length - result.carried)
    assert told.lies == tuple(dict.fromkeys(f"page {a // PAGE}" for a in range(told.address, end)))
    if told.after is None:
        return
    DmaFabric(memory, lambda *_: None).issue(DmaRequest(EDU, told.address, len(told.after), Direction.WRITE), data[result.carried:])
    assert memory.read(told.address, len(told.after)) == told.after


def test_an_interrupt_message_goes_to_no_memory():
    fabric = DmaFabric(Memory([(0, PAGE)]), lambda *_: _Stops(set()))
    fabric.port(EDU).write(0xFEE0_0000, b"\x30\0\0\0")
    assert as_written(EDU, 0xFEE0_0000, 0x30).vector == 0x30
    told = read_counterfactual(fabric.memory, read_trace(fabric.trace, 1)[0], nothing)
    assert (told.before, told.after, told.remark) == (b"", b"", "an interrupt message goes to no memory")


def test_what_is_kept_is_bounded():
    fabric = DmaFabric(Memory([(0, PAGE)]), lambda *_: _Stops(set()))
    for _ in range(5000):
        fabric.port(EDU).write(0, bytes(3 * PAGE))
    assert len(fabric.trace) == 4096 and {len(t.refused) for t in fabric.trace} == {PAGE}
