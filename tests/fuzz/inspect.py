"""The inspectors on remapping tables and registers of noise: nothing is raised, nothing loops, and what they say is what the unit does."""

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hvcore.errors import BadTable, HvlabError, Unreadable
from hvcore.inspect import diff
from hvcore.inspect.dmar import read_dmar
from hvcore.inspect.domains import Domain, decode, read_contexts, read_domains
from hvcore.inspect.dump import PageStore, load_npz, save_dump
from hvcore.inspect.e820 import E820Map
from hvcore.inspect.explain import explain, explain_fault
from hvcore.inspect.explain_interrupt import explain_interrupt
from hvcore.inspect.faults import read_faults
from hvcore.inspect.interrupts import read_interrupts, read_messages
from hvcore.inspect.lens import look
from hvcore.inspect.permissions import Permissions
from hvcore.inspect.records import Records
from hvcore.inspect.units import read_registers, read_units
from hvcore.inspect.walk import walk
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.spec import paging
from hvcore.spec.acpi import Rsdp, build_rsdp, build_xsdt
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.e820 import E820Entry, pack, unpack
from hvcore.spec.vtd import R, W, frcd_count, frcd_offset, in_interrupt_range

from .acpi import mutated_table, real_tables
from .mutate import check_sentence, junk, mutated, number, often
from .noise import Noise, random_unit

__all__ = ["TARGETS"]

_MANY = 50_000
"""Runs that take too long to be written one by one, a thousand times an hour."""
DATA = Path(__file__).resolve().parent.parent / "data"


def _many(records: Iterable[Any]) -> bool:
    return sum(len(d.runs) for d in records if isinstance(d, Domain)) > _MANY


def _show(records: Iterable[Any], frame: bool = False) -> None:
    """Every way in which records are shown; what is very many only in the ways that leave some out."""
    for part in records:
        assert str(part) and part._repr_html_()
        many = isinstance(part, Permissions) and len(part) > _MANY or isinstance(part, Records) and _many(part)
        assert many or json.dumps(part.to_json())
        if frame and not many and isinstance(part, Records):
            assert len(part.frame) == len(part)


def _live(r: Random) -> tuple[Noise, RemappingUnit]:
    """Tables of noise and a unit without caches that translates by them."""
    noise = Noise(r)
    unit = random_unit(r, noise.memory, ideal=True)
    noise.suit(unit.description.cap)
    unit.mmio_write(0x20, 8, noise.root)
    unit.mmio_write(0x18, 4, 1 << 30)
    unit.mmio_write(0x18, 4, 1 << 31)
    return noise, unit


def _agree(noise: Noise, unit: RemappingUnit, domains: Records[Domain], request: DmaRequest) -> str:
    """`explain`, the unit's walk, the unit itself and the domain's runs say the same of one request; what they say."""
    evidence = unit.walk(request.source, request.iova)
    reason = evidence.refusal(request.access)
    told = explain(noise.memory, unit, request.source, request.iova, request.access, unit.walker.haw)
    assert told.reason == reason, f"{request}: explained {told.reason}, walked {reason}"
    assert reason is not None or told.host == evidence.address
    result = unit.remap(request)
    assert (result.reason if isinstance(result, RemapFault) else None) == reason, f"{request}: walked {reason}, {result}"
    assert isinstance(result, RemapFault) or result == evidence.address
    _runs_agree(domains, evidence, request)
    assert str(told) and told._repr_html_() and told.to_json()
    return "translated" if reason is None else f"reason {reason:#x}"


def _runs_agree(domains: Records[Domain], evidence: Any, request: DmaRequest) -> None:
    """The permission runs of the requester's domain against the walk."""
    domain = next((d for d in domains if request.source in d.devices), None)
    if domain is None or domain.truncated or domain.problem or request.iova >> evidence.context.bits:
        return
    run = domain.runs.at(request.iova)
    host = None if run is None or run.perm == "-" else request.iova + run.offset
    if in_interrupt_range(request.iova) or host is not None and in_interrupt_range(host):
        return
    rights = sum(need for need, access in ((R, Direction.READ), (W, Direction.WRITE)) if evidence.refusal(access) is None)
    assert {0: "-", R: "r", W: "w", R | W: "rw"}[rights] == (run.perm if run else "-"), f"{request}: {run}, {evidence}"
    assert host == evidence.address


def live_tables(seed: int) -> str:
    """The readers of a running machine's tables, against the unit."""
    r = Random(seed)
    noise, unit = _live(r)
    haw = unit.walker.haw
    domains = read_domains(noise.memory, [unit], haw)
    _show([domains, read_units([unit]), read_registers(unit), read_contexts(noise.memory, noise.root, None, haw), Permissions(domains)],
          frame=often(r, 0.1))
    said = {_agree(noise, unit, domains, noise.request((1, 8))) for _ in range(30)}
    _look(r, noise, domains, unit)
    return f"{'cut, ' if any(d.truncated for d in domains) else ''}{'translated' if 'translated' in said else 'all refused'}"


def _look(r: Random, noise: Noise, domains: Records[Domain], unit: RemappingUnit) -> None:
    """The lens at some addresses, with E820 maps of noise; walks in every format."""
    entries = unpack(junk(r, 100)[:r.randrange(5) * 20].ljust(20, b"\1")[:20])
    maps = E820Map(entries, [E820Entry(0, noise.memory.end, 1)])
    _show([maps])
    for address in r.sample((0, noise.root, noise.memory.end, number(r, 64), (1 << 64) - 1), 2):
        lens = look(noise.memory, address, maps, domains, [("part", 0, 4096)], r.choice((None, *noise.pages)), read_units([unit]))
        _show([lens])
        for fmt in (paging.VTD, paging.NESTED, paging.EPT, paging.LONG_MODE):
            _show([walk(noise.memory, fmt, r.choice(noise.pages), r.choice((2, 3, 4, 5)), address)])


def interrupt_tables(seed: int) -> str:
    """Interrupt entries of noise: what is read of them, and what is explained of a message against what the unit does with it."""
    r = Random(seed)
    noise, unit = _live(r)
    base = noise.pages[-1]
    for i in range(32):
        low, high = r.choice((0x210001, 0x1_00210003, 0, 0x8001, number(r, 64))), r.choice((0, 0x40010, 0x8FF00, number(r, 64)))
        noise.pair(base + 16 * i, low, high)
    unit.mmio_write(0xB8, 8, r.choice((base | 4, base | 15, base | 1 << 11 | 7, number(r, 64))))
    unit.mmio_write(0x18, 4, 1 << 31 | 1 << 24)
    unit.mmio_write(0x18, 4, 1 << 31 | 1 << 25 | r.choice((0, 1 << 23)))
    _show([read_interrupts(noise.memory, unit, unit.walker.haw)], frame=often(r, 0.1))
    said, got_through = set(), []
    for _ in range(20):
        address = 0xFEE00000 | r.choice((0x10, 0x18, 0, number(r, 20) & ~3)) | r.randrange(40) << 5
        source, data = r.choice(noise.sources), r.choice((0, 1, number(r, 32)))
        told = explain_interrupt(noise.memory, unit, source, address, data, unit.walker.haw)
        result = unit.interrupt(source, address, data)
        reason = result.reason if isinstance(result, RemapFault) else None
        assert told.reason == reason, f"{address:#x} {data:#x}: explained {told.reason}, {result}"
        _show([told])
        said.add(reason)
        got_through += [] if isinstance(result, RemapFault) else [result]
    _show([read_messages(got_through)])
    return f"{'delivered' if None in said else 'all blocked'}{', blocked' if len(said) > 1 else ''}"


def shown_table(seed: int) -> str:
    """The DMAR table as it is shown, given as bytes and found in memory, beside what firmware laid."""
    r = Random(seed)
    first, second = (mutated_table(r, r.choice(real_tables()), real_tables()) for _ in range(2))
    entries = (E820Entry(0, 0x9F000, 1), E820Entry(0x10_0000, number(r, 40) + 0x10_0000, 2))
    memory = Memory([(0, 4 << 20)])
    laid = second[:1 << 20] if often(r, 0.5) else first[:1 << 20]
    memory.write(0x20_0000, laid)
    memory.write(0x10_0000, build_xsdt([0x20_0000]))
    memory.write(0xE0000, build_rsdp(Rsdp(0x10_0000)))
    if often(r, 0.3):
        memory.write(0x20_0000, bytes(r.randrange(5)))
    found = read_dmar(memory, None, entries, None, first)
    _show([found, found.scopes], frame=often(r, 0.1))
    try:
        given = read_dmar(first, None, entries)
    except BadTable as e:
        check_sentence(e)
        return "refused, found in memory" if found else "refused"
    _show([given, given.scopes])
    return "structures" if given else "none"


def recorded_faults(seed: int) -> str:
    """Fault records of anything: read, explained, told in Linux's words."""
    r = Random(seed)
    noise, unit = _live(r)
    cap = unit.description.cap
    for i in range(frcd_count(cap)):
        at = frcd_offset(cap, i)
        low, high = (noise.iova(), r.choice((1, 0)) << 63 | number(r, 63)) if often(r, 0.8) else (number(r, 64), number(r, 64))
        unit.file.bytes[at:at + 16] = (low | high << 64).to_bytes(16, "little")
    unit.file["FSTS"] = number(r, 32)
    faults = read_faults([unit])
    _show([faults], frame=often(r, 0.2))
    for fault in faults[:8]:
        assert fault.linux_line
        _show([explain_fault(noise.memory, {unit.base: unit}, fault, unit.walker.haw)])
    return "faults" if faults else "none"


def differences(seed: int) -> str:
    """What two machines of noise have that the other has not."""
    r = Random(seed)
    first, second = _live(r), _live(r)
    parts = [(read_domains(n.memory, [u], u.walker.haw), read_units([u]), read_faults([u])) for n, u in (first, second)]
    if any(_many(domains) for domains, _, _ in parts):
        return "too many runs"
    (a_domains, a_units, a_faults), (b_domains, b_units, b_faults) = parts
    _show([diff.diff_domains(a_domains, b_domains), diff.diff_units(a_units, b_units), diff.diff_faults(a_faults, b_faults)])
    assert not diff.diff_domains(a_domains, a_domains) and not diff.diff_units(a_units, a_units)
    maps = [E820Map(unpack(junk(r, 10)[:10].ljust(10, b"\2") + junk(r, 10).ljust(10, b"\0")[:10])) for _ in range(2)]
    _show([diff.diff_e820(*maps)])
    return "different" if diff.diff_domains(a_domains, b_domains) else "the same"


def dumps(seed: int) -> str:
    """What is written of tables and read back gives the same domains."""
    r = Random(seed)
    noise, unit = _live(r)
    with TemporaryDirectory(prefix="hvlab-fuzz-") as name:
        save_dump(noise.memory, [unit], Path(name), unit.walker.haw)
        store = load_npz(Path(name) / "tables.npz")
    live = read_domains(noise.memory, [unit], unit.walker.haw)
    stored = read_domains(store, [unit], unit.walker.haw)
    cut = _many(live)
    assert cut or [d.to_json() for d in stored] == [d.to_json() for d in live], "the file says something else than the memory"
    return "too many runs" if cut else "domains" if live else "none"


# --- files

@cache
def _real_dump() -> bytes:
    return (DATA / "bitvisor" / "tables.npz").read_bytes()


def _arrays(r: Random) -> dict[str, Any]:
    """Pages of noise with addresses of their own, some of them of a wrong kind, shape or order."""
    noise = Noise(r)
    addresses = np.array([p if often(r, 0.9) else number(r, 64) & ~0xFFF for p in noise.pages], np.uint64)
    pages = np.stack([noise.memory.u64(p, 512).copy() for p in noise.pages])
    if often(r, 0.3):
        pages[r.randrange(len(pages))] = r.choice((0, (1 << 64) - 1, int(addresses[0]) | 3, number(r, 64)))
    spoil = r.randrange(12)
    pages = {4: pages[:0], 5: pages[:, :511], 6: pages.astype(object), 7: np.asfortranarray(pages),
             8: pages.astype(np.int64)}.get(spoil, pages)
    addresses = {0: addresses[:-1], 1: addresses.astype(np.float64), 2: addresses.astype(">u8"), 3: addresses.astype(np.int64),
                 4: addresses[:0]}.get(spoil, addresses)
    return {"address": addresses, "page": pages} | ({"more": np.zeros(3)} if often(r, 0.1) else {})


def files(seed: int) -> str:
    """`tables.npz`: arrays of noise, and files with mutations; what is loaded is decoded from anywhere."""
    r = Random(seed)
    with TemporaryDirectory(prefix="hvlab-fuzz-") as name:
        path = Path(name) / "tables.npz"
        if often(r, 0.5):
            np.savez(path, **_arrays(r))
            if often(r, 0.2):
                path.write_bytes(mutated(r, path.read_bytes()))
        else:
            path.write_bytes(mutated(r, _real_dump()))
        try:
            store = load_npz(path)
        except HvlabError as e:
            check_sentence(e, str(path))
            return "refused"
        assert str(store)
    return _decoded(r, store)


def _decoded(r: Random, store: PageStore) -> str:
    roots = [int(a) for a in store.address[:3]] + [number(r, 64) for _ in range(2)]
    decoded = []
    for root in roots:
        try:
            decoded.append(decode(store, root))
        except BadTable as e:
            check_sentence(e)
            continue
        _show([decoded[-1]])
    for address in (number(r, 64), (1 << 64) - 8, *roots):
        try:
            assert len(store.read(address, 8)) == 8
        except Unreadable:
            continue
    return "decoded, domains" if any(decoded) else "decoded" if decoded else "loaded"


def maps(seed: int) -> str:
    """E820 bytes of anything, as rows."""
    r = Random(seed)
    entries = unpack(b"".join(number(r, bits).to_bytes(bits // 8, "little") for _ in range(r.randrange(12)) for bits in (64, 64, 32)))
    rows = E820Map(entries, unpack(pack(entries)) if all(e.start <= e.end for e in entries) else ())
    _show([rows], frame=often(r, 0.2))
    assert all(a.start < a.end for a in rows)
    return "rows" if rows else "none"


TARGETS: dict[str, Callable[[int], str]] = {
    "live": live_tables, "interrupts": interrupt_tables, "shown-dmar": shown_table, "faults": recorded_faults, "diff": differences,
    "dumps": dumps, "npz": files, "maps": maps}
