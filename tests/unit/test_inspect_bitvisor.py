"""The tables of the real BitVisor, as measured: what the inspectors must read out of them."""

from pathlib import Path

import numpy as np
import pytest

from hvcore.errors import BadTable, Unreadable
from hvcore.inspect.domains import Domain, decode, read_contexts
from hvcore.inspect.dump import PageStore, load_npz
from hvcore.inspect.permissions import Permissions
from hvcore.inspect.walk import Verdict, walk
from hvcore.spec.paging import VTD

FILE = Path(__file__).parents[1] / "data" / "bitvisor" / "tables.npz"
ROOT_TABLE = 0x79BE0000


@pytest.fixture(scope="module")
def store() -> PageStore:
    return load_npz(FILE)


@pytest.fixture(scope="module")
def domain(store: PageStore) -> Domain:
    (only,) = decode(store, ROOT_TABLE)
    return only


def test_one_domain_for_the_six_functions_of_bus_0(domain: Domain) -> None:
    assert domain.to_json() == {
        "unit": None, "did": 0, "levels": 3, "root": 0x793FB000, "table_pages": 2053,
        "devices": ["00:00.0", "00:01.0", "00:02.0", "00:1f.0", "00:1f.2", "00:1f.3"],
        "leaves": {"4K": 1048576, "2M": 0, "1G": 0},
        "runs": [{"start": 0, "end": 0x77C00000, "perm": "rw", "offset": 0},
                 {"start": 0x77C00000, "end": 0x7FC00000, "perm": "-", "offset": 0},
                 {"start": 0x7FC00000, "end": 0x100000000, "perm": "rw", "offset": 0}]}


def test_pages_of_each_run(domain: Domain) -> None:
    assert [run.size >> 12 for run in domain.runs] == [490496, 32768, 525312]
    assert domain.mapped == (490496 + 525312) << 12
    assert domain.remark is None


def test_contexts(store: PageStore) -> None:
    contexts = read_contexts(store, ROOT_TABLE)
    assert [c.source for c in contexts] == [0x00, 0x08, 0x10, 0xF8, 0xFA, 0xFB]
    assert {(c.low, c.high, c.translation, c.fpd, c.problem) for c in contexts} == {(0x793FB001, 1, "translate", False, None)}


def test_every_page_of_the_file_is_root_context_or_second_level(store: PageStore, domain: Domain) -> None:
    assert set(store.address.tolist()) == {*domain.tables.tolist(), ROOT_TABLE, 0x79BE1000}


@pytest.mark.parametrize(("iova", "host"), [(0x77BFF000, 0x77BFF000), (0x77C00000, None), (0x7FBFFFFF, None), (0x7FC00000, 0x7FC00000),
                                            (0xFFFFFFFF, 0xFFFFFFFF), (0x101E63000, None)])
def test_the_edges_of_the_hole_and_the_end(store: PageStore, domain: Domain, iova: int, host: int | None) -> None:
    way = walk(store, VTD, domain.root, domain.levels, iova)
    assert way.host == host
    assert way.verdict is (Verdict.ABSENT if host is None else Verdict.MAPPED)


def test_the_hole_holds_addresses_and_beyond_the_end_there_is_nothing(store: PageStore, domain: Domain) -> None:
    assert walk(store, VTD, domain.root, 3, 0x7FBFF000).steps[-1].text == "holds 0x7fbff000 but grants nothing over 4 KiB"
    assert walk(store, VTD, domain.root, 3, 0x101E63000).steps[-1].text == "all zero"


def test_permissions_as_a_frame(domain: Domain) -> None:
    frame = Permissions([domain]).frame
    assert frame.index.name == "permission"
    assert list(frame.columns) == ["unit", "did", "start", "end", "size", "perm", "offset"]
    assert frame["end"].tolist() == [0x77C00000, 0x7FC00000, 0x100000000]
    assert frame["perm"].tolist() == ["rw", "-", "rw"]
    assert all(isinstance(v, int) for v in frame["start"].tolist())


def test_the_file_is_a_memory_reader(store: PageStore) -> None:
    assert store.read(ROOT_TABLE, 8) == (0x79BE1001).to_bytes(8, "little")
    assert len(store.read(ROOT_TABLE + 0xFF8, 16)) == 16
    with pytest.raises(Unreadable, match="does not hold that page"):
        store.read(0x1000, 8)
    assert "2,055 pages" in repr(store)


def test_a_wrong_root_is_told(store: PageStore) -> None:
    with pytest.raises(BadTable, match="no page at 0x1000"):
        decode(store, 0x1000)
    with pytest.raises(BadTable, match="multiple of 0x1000"):
        decode(store, 0x79BE0008)
    with pytest.raises(BadTable, match="multiple of 0x1000"):
        decode(store, -0x1000)


def test_second_level_pages_read_as_a_root_table_do_not_raise(store: PageStore) -> None:
    for address in store.address[::200].tolist():
        for domain in decode(store, address):
            assert domain.unit is None


def test_a_torn_file_still_decodes(store: PageStore, domain: Domain) -> None:
    keep = store.address != np.uint64(domain.tables[0] if int(domain.tables[0]) != domain.root else domain.tables[5])
    (torn,) = decode(PageStore(store.address[keep], store.page[keep]), ROOT_TABLE)
    assert torn.table_pages == 2052
    assert len(torn.unreadable) == 1
    assert torn.remark == "1 ranges whose tables cannot be read"
    lost = torn.unreadable[0]
    assert torn.mapped + sum(r.size for r in torn.runs if r.perm == "-") == (1 << 32) - lost.size
