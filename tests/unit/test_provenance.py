"""Who wrote what: DMA, stores of the guest, stores of the host, the core and firmware, each by the bytes that it left."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from hvcore.inspect.walk import walk
from hvcore.machine.clock import Clock
from hvcore.machine.memory import Memory
from hvcore.machine.writes import ELSEWHERE, WriteLog
from hvcore.sources import load
from hvcore.spec.dma import Direction, DmaRequest
from hvcore.spec.paging import NESTED
from hvcore.spec.writes import Write, Writer
from hvcore.vmm.layout import Data, Part

PAGE = 4096
EDU = 0x0018
"""Requester id of the device that the guest's `dma` command uses."""


def nested_entry(machine, guest_physical: int) -> int:
    """Where the last entry of a walk of the guest's nested tables lies."""
    return walk(machine.pc.memory, NESTED, machine.core.nested_root(), 4, guest_physical).steps[-1].entry


# --- whole machines

def test_a_device_wrote_a_nested_entry_and_then_the_guest_stored_where_that_led(machine):
    """The way in is opened by DMA, for nothing translates; from then on the guest's stores to the core are seen."""
    run = machine.boot(Config(VTD_TRANS=False))
    base = run.vmm.base
    entry, value = nested_entry(machine, base + 0x9000), base + Part.SECRET | 7
    before, = run.who_wrote(entry)
    assert (before.writer, before.phase) == ("core", "guest")
    run.guest.command(f"dma w {entry:#x} 8 {value:#x}")
    wrote, = run.who_wrote(entry)
    assert (wrote.writer, wrote.source, wrote.asked, wrote.length) == ("dma", EDU, entry, 8)
    assert wrote.wrote == wrote.now == value.to_bytes(8, "little")
    assert wrote.time == next(d.time for d in reversed(run.dma) if d.landing == entry)
    run.guest.command(f"poke {base + 0x409010:#x} 0x1122334455667788 8")
    stored, = run.who_wrote(base + Part.SECRET + 0x10)
    assert (stored.writer, stored.wrote) == ("guest", bytes.fromhex("8877665544332211"))
    assert stored.now == machine.pc.memory.read(base + Part.SECRET + 0x10, 8) == stored.wrote
    assert stored.time > wrote.time
    code = machine.pc.memory.read(stored.rip, 16)         # guest-virtual = guest-physical in the lab guest
    assert code[0] in (0x48, 0x49, 0x4C) and code[1] == 0x89, f"no store of 8 bytes: {code.hex()}"
    assert stored.asked % PAGE == 0x10
    assert walk(machine.pc.memory, NESTED, machine.core.nested_root(), 4, stored.asked).host == stored.address
    neighbours = run.who_wrote(base + Part.SECRET, 32)
    assert [(p.writer, p.length) for p in neighbours] == [("core", 16), ("guest", 8), ("core", 8)]


def test_an_entry_that_is_planted_from_outside_opens_the_eyes_too(machine):
    """As the tests of other things do it: with the processor at rest."""
    run = machine.boot(Config())
    base, memory = run.vmm.base, machine.pc.memory
    assert "are not seen" in run.who_wrote(base).note
    memory.write64(nested_entry(machine, base + 0xB000), base + 0xB000 | 7)
    assert "are seen since" in run.who_wrote(base).note
    run.guest.command(f"poke {base + 0xB123:#x} 0x5a 1")
    stored, = run.who_wrote(base + 0xB123, 1)
    assert (stored.writer, stored.wrote, stored.now) == ("guest", b"\x5a", b"\0\0\0\x5a\0\0\0\0")


def test_what_a_drive_writes_for_the_core_wakes_nothing(machine):
    """Its queues and buffers lie in pages of the core that keep nobody out."""
    run = machine.boot(Config(PROFILE="mended", NVME_DRIVER=True))
    own = [d.landing for d in run.dma if d.access == "write" and d.landing and run.vmm.base <= d.landing < run.vmm.base + run.vmm.size]
    assert own and run.who_wrote(own[-1])[0].writer == "dma"
    assert "are not seen" in run.who_wrote(own[-1]).note


def test_a_second_guest_is_watched_too(machine):
    """Once a device has written its nested tables."""
    run = machine.boot(Config(VTD_TRANS=False, TINYVISOR=True))
    second, memory = machine.core.tiny.guest, machine.pc.memory
    root = memory.read64(second.base + Part.VMCB + 0xB0)
    assert "are not seen" in run.who_wrote(root).note
    assert machine.pc.fabric.port(EDU).write(root + 0xFF8, bytes(8)).ok
    assert run.who_wrote(root + 0xFF8)[0].writer == "dma"
    assert "are seen since" in run.who_wrote(root).note


@pytest.mark.parametrize("public_only", [False, True])
def test_stores_in_a_range_that_is_watched(public_only):
    """Of code that ran before, too, with either way in which an exit is finished; the host's stores beside the guest's."""
    with Machine(load("q35-2g"), public_only=public_only) as m:
        run = m.boot(Config())
        address = 0x3000_0000
        run.guest.command(f"poke {address:#x} 0x1 8")
        assert [p.writer for p in run.who_wrote(address)] == ["unseen"]
        run.watch(address, address + 64)
        run.watch(run.vmm.base, run.vmm.base + PAGE * 2)
        run.guest.command(f"poke {address + 8:#x} 0x1234 8")
        unseen, seen = run.who_wrote(address, 16)
        assert (unseen.writer, seen.writer, seen.wrote) == ("unseen", "guest", (0x1234).to_bytes(8, "little"))
        saved, = run.who_wrote(run.vmm.base + Part.DATA + Data.GPRS + 8)
        text = run.vmm.base, run.vmm.base + PAGE
        assert saved.writer == "host" and text[0] <= saved.rip < text[1]
        assert saved.wrote == saved.now
        assert run.outcome == "up"


def test_what_the_core_wrote_is_told_by_its_log_and_its_heap(machine):
    run = machine.boot(Config())
    base, domain, memory = run.vmm.base, run.domains[0], machine.pc.memory
    text, = run.who_wrote(base, 64)
    assert (text.writer, text.wrote, text.remark) == ("core", memory.read(base, 64), "")
    root, = run.who_wrote(domain.root)
    assert (root.writer, root.phase, root.wrote) == ("core", "iommu tables", None)
    context = next(s.address for s in run.what_if(domain.devices[0], 0x1000).steps if s.what.startswith("context"))
    entry, = run.who_wrote(context)
    assert (entry.writer, entry.phase, entry.wrote) == ("core", "iommu on", memory.read(context, 8))
    nested, = run.who_wrote(machine.core.nested_root())
    assert (nested.writer, nested.phase) == ("core", "guest")
    memory.u64(machine.core.nested_root(), 1)[0] ^= 0x20
    assert "accessed and dirty bits" in run.who_wrote(machine.core.nested_root())[0].remark
    free, = run.who_wrote(base + run.vmm.size - PAGE)
    assert (free.writer, free.now) == ("never", bytes(8))
    dmar = run.dmar.address
    zapped, header = run.who_wrote(dmar)[0], run.who_wrote(dmar + 8)[0]
    assert (zapped.writer, header.writer) == ("core", "firmware")


def test_an_array_that_changed_what_was_logged_is_told(machine):
    run = machine.boot(Config())
    secret = run.vmm.base + Part.SECRET
    machine.pc.memory.u8(secret, 4)[:] = 7
    found, = run.who_wrote(secret)
    assert found.writer == "core" and found.remark == "changed since by somebody whose writes are not seen"


def test_a_blocked_write_wrote_nothing(machine):
    run = machine.boot(Config())
    target = run.vmm.base + Part.SECRET
    run.guest.command(f"dma w {target:#x} 8 0x1")
    assert run.dma[-1].result == "blocked"
    assert [p.writer for p in run.who_wrote(target)] == ["core"]
    assert "are not seen" in run.who_wrote(target).note


def test_a_guest_that_is_stepped_is_seen(machine):
    run = machine.boot(Config())
    stack = machine.registers["rsp"]
    run.watch(stack - 0x2000, stack + 0x1000)
    machine.key_in("help\n")
    machine.step(400)
    found = [p for p in run.who_wrote(stack - 0x2000, 0x3000) if p.writer == "guest"]
    assert found and all(p.rip and p.wrote for p in found)


def test_how_it_is_shown(machine):
    run = machine.boot(Config())
    found = run.who_wrote(run.vmm.base + Part.SECRET, 40)
    assert "the core's policy" in str(found) and "<table" in found._repr_html_()
    assert list(found.frame["address"]) == [p.address for p in found]
    assert found.to_json()[0]["wrote"] == machine.pc.memory.read(run.vmm.base + Part.SECRET, 32).hex()
    for wrong in ((-1, 8), (0, 0), (0, 2 << 20)):
        with pytest.raises(HvlabError, match="no range"):
            run.who_wrote(*wrong)
    with pytest.raises(HvlabError, match="no range"):
        run.watch(8, 8)
    machine.boot(Config())
    with pytest.raises(HvlabError, match="is over"):
        run.who_wrote(0)


# --- the log alone

def log_of(memory: Memory, armed: list | None = None) -> WriteLog:
    log = WriteLog(Clock(), lambda ranges, _: armed.extend(ranges) if armed is not None else None, lambda: False)
    memory.recorder = log.written
    log.phase("guest runs")
    return log


@settings(max_examples=100)
@given(st.integers(0, 1 << 48))
def test_the_newest_writer_of_every_byte_is_right(seed):
    """Against a plain array of who wrote each byte last; a word's writer is the newest of its bytes'."""
    r = Random(seed)
    memory = Memory([(0, 1 << 16)])
    log = log_of(memory)
    log.region = lambda: [(0x2000, 0x6000)]
    newest, order = np.full(1 << 16, -1), []
    for i in range(r.randrange(1, 60)):
        length = r.choice((1, 3, 8, 8, 16, 200, PAGE, 3 * PAGE))
        address = min(r.choice((r.randrange(1 << 16), r.randrange(0x2000, 0x2040), r.randrange(16) * PAGE)), (1 << 16) - length)
        by = r.choice((None, DmaRequest(r.randrange(1 << 16), address, length, Direction.WRITE), "a unit"))
        memory.write(address, r.randbytes(length), by)
        order.append((address, length, by))
        newest[address:address + length] = i
    for word in range(0, 1 << 16, 8):
        i = int(newest[word:word + 8].max())
        found = log.newest(word)
        if i < 0:
            assert found is None
            continue
        address, length, by = order[i]
        kind = Writer.CORE if by is None else Writer.DMA if isinstance(by, DmaRequest) else Writer.HARDWARE
        assert (found.address, len(found.data), found.writer) == (address, length, kind)
        assert found.source == (by.source if isinstance(by, DmaRequest) else None)


def test_writers_in_the_region_outlive_any_amount_of_other_writes():
    memory = Memory([(0, (ELSEWHERE + 600) * PAGE)])
    log = log_of(memory)
    log.region = lambda: [(0x2000, 0x3000)]
    first = DmaRequest(EDU, 0x2008, 8, Direction.WRITE)
    memory.write(0x2008, b"evidence", first)
    memory.write(0x9000, b"elsewhere", first)
    for page in range(16, ELSEWHERE + 600):
        memory.write(page * PAGE, b"noise", DmaRequest(0x10, page * PAGE, 5, Direction.WRITE))
    assert log.newest(0x2008) == Write(Writer.DMA, 0x2008, b"evidence", 0, "guest runs", EDU, 0, 0x2008)
    assert log.newest(0x9000) is None and log.forgotten == 585
    assert len(log._others) == ELSEWHERE


def test_only_what_may_let_the_guest_in_wakes_the_watch():
    memory, armed = Memory([(0, 1 << 16)]), []
    log = log_of(memory, armed)
    log.region, log.opens = lambda: [(0x2000, 0x6000)], lambda address: address < 0x3000
    request = DmaRequest(EDU, 0, 8, Direction.WRITE)
    memory.write(0x8000, bytes(8), request)
    memory.write(0x4000, bytes(8), request)
    memory.write(0x2000, bytes(8))
    assert armed == []
    memory.write(0x2000, bytes(8), request)
    memory.write(0x2000, bytes(8), request)
    assert armed == [(0x2000, 0x6000)]
    assert log.stores_seen_since(0x5000) == 0 and log.stores_seen_since(0x6000) is None
