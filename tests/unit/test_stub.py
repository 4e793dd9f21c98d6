"""The committed machine code of the world switch is what its source gives, and fits its page."""

import re
import subprocess
from pathlib import Path

import pytest

import hvcore.vmm.layout as layout
from hvcore.vmm.core import stub

SOURCE = Path(layout.__file__).parent / "stub" / "world_switch.S"


@pytest.mark.needs("gcc")
def test_built_from_source(tmp_path):
    (tmp_path / "world_switch.S").write_bytes(SOURCE.read_bytes())
    subprocess.run(["make", "-s", "-f", SOURCE.parent / "Makefile"], cwd=tmp_path, check=True)
    assert (tmp_path / "world_switch.bin").read_bytes() == stub()


def test_source_and_layout_name_the_same_offsets():
    offsets = {name: int(value, 16) for name, value in re.findall(r"\.set DATA_(\w+), DATA \+ (0x\w+)", SOURCE.read_text())}
    assert offsets == {name: layout.Data[name] for name in offsets}
    assert set(offsets) == {"VMCB", "HOST", "WAIT", "CR3", "GDTR", "HSAVE", "STACK", "GPRS"}


def test_fits_its_page_and_runs_the_guest_by_vmrun():
    assert len(stub()) <= 0x1000
    assert stub().count(b"\x0f\x01\xd8") == 1
