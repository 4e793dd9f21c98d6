"""The claims of a proof by number, and a unit that lets nobody to a region, for tests of proofs."""

from vtd_bench import QEMU_CAP, QEMU_ECAP, TABLE1, Bench

from hvcore.inspect.proof import Proof
from hvcore.inspect.prove import Subject, read_proof

PAGE = 4096
MIB = 1 << 20
WRITES, READS, TABLES_WRITTEN, TABLES_READ, LANDS, MESSAGES, FORGES = range(7)
CPU_WRITES, CPU_READS, CPU_TABLES_W, CPU_TABLES_R, CPU_REGISTERS = range(7, 12)


def proof_of(bench: Bench, region: tuple[int, int], **more: object) -> Proof:
    return read_proof(Subject(bench.memory, [bench.unit], region, host_address_width=bench.unit.walker.haw, **more))


REGION = (0x9000, 0xB000)
"""Of the bench's pages 0x9000 (read and write, at IOVA 0x5000) and 0xA000 (read, at IOVA 0x6000)."""


def closed() -> Bench:
    """A unit with pass-through and interrupt remapping, whose tables let nobody to REGION; nothing is remembered."""
    bench = Bench(QEMU_CAP | 1 << 5, QEMU_ECAP | 1 << 3)
    bench.memory.write64(TABLE1 + 8 * 5, 0)
    bench.memory.write64(TABLE1 + 8 * 6, 0)
    return bench
