"""Machines with two guests, and what tests ask of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from hvcore import Config, Machine, Run
from hvcore.guests import GuestView
from hvcore.inspect.runs import Runs
from hvcore.spec import vtd

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
MACHINES = ("q35-6g", "q35-2g", "gigabyte-b150m-16g")
PATTERN = b"HVLABDMA"


@contextmanager
def split(name: str = "q35-6g", **options: object) -> Iterator[tuple[Machine, Run, GuestView, GuestView]]:
    """A machine with two guests that wait for input."""
    with Machine.load(name) as machine:
        run = machine.boot(Config(**{"PROFILE": "mended", "TINYVISOR": True} | options))  # type: ignore[arg-type]
        first, second = run.guests
        yield machine, run, first, second


def region(run: Run) -> tuple[int, int]:
    assert run.vmm.base is not None
    return run.vmm.base, run.vmm.base + run.vmm.size


def block(guest: GuestView) -> tuple[int, int]:
    """Guest 2's range of RAM, the hole below 1 MiB included."""
    return guest.ram[0][0], guest.ram[-1][1]


def lspci(guest: GuestView) -> set[str]:
    return {line.split()[0] for line in guest.command("lspci").splitlines()}


def dump_bytes(answer: str) -> bytes:
    """The bytes of the monitor's hexdump."""
    return b"".join(bytes.fromhex(line[16:].partition("|")[0]) for line in answer.splitlines() if line[:16].strip("0123456789abcdef") == "")


def grants(runs: Runs) -> list[tuple[int, int]]:
    """The half-open host-physical ranges that runs lead to with any right."""
    return [(r.start + r.offset, r.end + r.offset) for r in runs if r.perm != "-"]


def overlap(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where two sets of ranges meet, by a sweep over b's for each of a's."""
    return [(max(x[0], y[0]), min(x[1], y[1])) for x in a for y in b if x[0] < y[1] and y[0] < x[1]]


def clear_faults(machine: Machine) -> None:
    """Every fault record of the machine's first unit, as software clears it."""
    unit, bus = machine.pc.units[0], machine.pc.bus
    record = unit.base + vtd.frcd_offset(bus.read(unit.base + 8, 8)) + 8
    bus.write(record, 8, bus.read(record, 8))
    bus.write(unit.base + 0x34, 4, 0x7F)
