"""The command line: the contract's JSON, exit statuses, and one line for every mistake."""

import json
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from hvcore.cli import main
from hvcore.sources import images_dir
from hvcore.spec import acpi

MEASURED = Path(__file__).parents[1] / "data" / "bitvisor" / "tables.npz"
REAL = images_dir() / "machines" / "real"
E820 = """BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
BIOS-e820: [mem 0x0000000000100000-0x000000007fffffff] usable
BIOS-e820: [mem 0x0000000100000000-0x000000017fffffff] usable
"""


def run(capsys, *words):
    status = main(list(words))
    out, err = capsys.readouterr()
    return status, out, err


def boot(capsys, *words):
    status, out, _ = run(capsys, "boot", *words, "--json")
    assert status == 0
    return json.loads(out)


def test_boot_prints_the_contract(capsys):
    result = boot(capsys, "q35-6g", "--set", "VTD_TRANS=y")
    assert set(result) == {"machine", "config", "outcome", "why", "e820", "vmm", "units", "domains", "faults", "console", "timings"}
    assert result["machine"] == {"name": "q35-6g", "ram_bytes": 6 << 30, "assumptions": []}
    assert result["config"]["VTD_TRANS"] is True
    assert result["outcome"] == "disk-lost"
    assert result["vmm"]["base"] == 0x77C00000
    assert result["vmm"]["size"] == 128 << 20
    assert {"start": 0x100000, "end": 0x77C00000, "type": 1} in result["e820"]["guest"]
    assert {"start": 0x100000, "end": 0x7FFD7000, "type": 1} in result["e820"]["firmware"]
    unit, = result["units"]
    assert set(unit) == {"base", "segment", "include_all", "cap", "ecap", "gsts", "rtaddr", "devices"}
    assert (unit["base"], unit["gsts"]) == (0xFED90000, 0xC0000000)
    domain, = result["domains"]
    assert {"unit", "did", "levels", "root", "table_pages", "devices", "leaves", "runs"} <= set(domain)
    assert domain["runs"] == [{"start": 0, "end": 0x77C00000, "perm": "rw", "offset": 0},
                              {"start": 0x77C00000, "end": 0x7FC00000, "perm": "-", "offset": 0},
                              {"start": 0x7FC00000, "end": 1 << 32, "perm": "rw", "offset": 0}]
    assert domain["leaves"] == {"4K": 1 << 20, "2M": 0, "1G": 0}
    fault, = result["faults"]
    assert fault == {"unit": 0xFED90000, "source": "00:02.0", "address": fault["address"], "access": "read", "reason": 6,
                     "text": "PTE Read access is not set"}
    assert any("(IOMMU) dom 0(PT Devs.) ... Ready." in line for line in result["console"]["vmm"])
    assert result["console"]["guest"][-1].startswith("lab>")


@pytest.mark.parametrize(("settings", "outcome"), [(["VTD_TRANS=n"], "up"), (["VTD_TRANS=y", "IOMMU_MAP_END=ram"], "up"),
                                                   (["VTD_TRANS=y", "IOMMU_MAP_END=e820"], "vmm-panic"), (["PROFILE=mended"], "up")])
def test_settings(capsys, settings, outcome):
    assert boot(capsys, "q35-6g", *(w for s in settings for w in ("--set", s)))["outcome"] == outcome


def test_dump_and_decode_go_together(capsys, tmp_path):
    status, out, _ = run(capsys, "dump", "q35-2g", "-o", str(tmp_path / "d"))
    assert status == 0
    assert out.split() == [str(tmp_path / "d" / "tables.npz"), str(tmp_path / "d" / "registers.json")]
    registers = json.loads((tmp_path / "d" / "registers.json").read_text())["units"][0]["registers"]
    with np.load(tmp_path / "d" / "tables.npz") as tables:
        assert tables["address"].shape == (2055,)
        assert tables["page"].shape == (2055, 512)
        assert tables["page"].dtype == np.uint64
    status, out, _ = run(capsys, "decode", str(tmp_path / "d" / "tables.npz"), "--root", hex(registers["RTADDR"]), "--json")
    assert status == 0
    decoded = json.loads(out)["domains"]
    booted = boot(capsys, "q35-2g")["domains"]
    assert [d | {"unit": None} for d in booted] == decoded


def test_decodes_what_the_real_one_left(capsys):
    status, out, _ = run(capsys, "decode", str(MEASURED), "--root", "0x79be0000", "--json")
    domain, = json.loads(out)["domains"]
    assert status == 0
    assert (domain["did"], domain["levels"], domain["table_pages"]) == (0, 3, 2053)
    assert domain["devices"] == ["00:00.0", "00:01.0", "00:02.0", "00:1f.0", "00:1f.2", "00:1f.3"]
    assert [(r["start"], r["end"], r["perm"]) for r in domain["runs"]] == \
        [(0, 0x77C00000, "rw"), (0x77C00000, 0x7FC00000, "-"), (0x7FC00000, 1 << 32, "rw")]
    ours = boot(capsys, "q35-6g")["domains"][0]
    assert ours["runs"] == domain["runs"]
    assert (ours["leaves"], ours["table_pages"]) == (domain["leaves"], domain["table_pages"])


def test_commands_are_typed_to_the_guest(capsys):
    _, out, _ = run(capsys, "boot", "q35-6g", "--set", "VTD_TRANS=y", "--command", "dma r 0x77c00000 16")
    assert "lab> dma r 0x77c00000 16\ndma: no data arrived" in out


def test_machines_lists_what_is_shipped(capsys):
    _, out, _ = run(capsys, "machines", "--json")
    names = {row["name"] for row in json.loads(out)}
    assert {"q35-2g", "q35-6g", "laptop-16g", "server-64g", "server-1t", "surface-pro-7-16g"} <= names


def test_status_2_and_one_line_from_the_shell():
    done = subprocess.run([sys.executable, "-m", "hvcore.cli", "boot", "no-such-machine"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


# --- mistakes: one line each

def broken_dmar(change):
    table = bytearray((REAL / "qemu-q35-6g" / "DMAR.dat").read_bytes())
    changed = change(table)
    return bytes(table if changed is None else changed)


def with_checksum(table):
    table[9] = 0
    table[9] = acpi.checksum(bytes(table))
    return table


def zero_length(table):
    struct.pack_into("<H", table, 50, 0)
    return with_checksum(table)


def wrong_sum(table):
    table[9] ^= 0x55


TABLES = {"truncated": lambda t: t[:60], "structure of length 0": zero_length, "wrong checksum": wrong_sum, "empty": lambda t: b"",
          "no DMAR": lambda t: with_checksum(bytearray(b"APIC") + t[4:])}


@pytest.mark.parametrize("name", TABLES)
def test_a_broken_table_is_one_line(capsys, tmp_path, name):
    (tmp_path / "e820.txt").write_text(E820)
    (tmp_path / "DMAR.dat").write_bytes(broken_dmar(TABLES[name]))
    status, out, err = run(capsys, "boot", str(tmp_path), "--json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "DMAR" in err


LOGS = {
    "no entries": "nothing here\n",
    "beyond the limit": E820 + "BIOS-e820: [mem 0x0000000200000000-0x00000400ffffffff] usable\n",
    "nothing usable": E820.replace("usable", "reserved"),
    "end before start": E820 + "BIOS-e820: [mem 0x0000000900000000-0x0000000800000000] usable\n",
}


@pytest.mark.parametrize("name", LOGS)
def test_a_hopeless_log_is_one_line(capsys, tmp_path, name):
    (tmp_path / "dmesg.txt").write_text(LOGS[name])
    status, out, err = run(capsys, "boot", str(tmp_path / "dmesg.txt"), "--json")
    assert (status, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("lines", [list(reversed(E820.splitlines())), [*E820.splitlines(), E820.splitlines()[1]],
                                   [*E820.splitlines(), "BIOS-e820: [mem 0x0000000040000000-0x00000000403fffff] reserved"]],
                         ids=["descending", "twice", "overlapping"])
def test_a_strange_map_boots_and_says_what_was_done(capsys, tmp_path, lines):
    (tmp_path / "dmesg.txt").write_text("\n".join(lines) + "\n")
    result = boot(capsys, str(tmp_path / "dmesg.txt"))
    assert result["outcome"] == "up"
    assert result["machine"]["assumptions"]
    starts = [e["start"] for e in result["e820"]["firmware"]]
    assert starts == sorted(starts)


@pytest.mark.parametrize("words", [["boot"], ["boot", "q35-6g", "--set", "NOPE=1"], ["boot", "q35-6g", "--set", "VTD_TRANS=?"], ["fly"], [],
                                   ["decode", "x.npz", "--root", "0x1000"], ["decode", "x.npz"], ["decode", "x.npz", "--root", "here"],
                                   ["decode", str(MEASURED), "--root", "0x1234"], ["decode", str(MEASURED), "--root", "0x1000"],
                                   ["decode", __file__, "--root", "0x1000"], ["boot", "/"], ["boot", "\0"], ["boot", ""]])
def test_a_wrong_call_is_status_2_and_one_line(capsys, words):
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "hvcore.cli", "machines", "--json"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "hvlab: the output cannot be written: No space left on device\n")


def test_the_version_is_the_packages():
    with open(Path(__file__).parents[2] / "pyproject.toml", "rb") as file:
        packaged = tomllib.load(file)["project"]["version"]
    done = subprocess.run([sys.executable, "-m", "hvcore.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"hvlab {packaged}\n"
