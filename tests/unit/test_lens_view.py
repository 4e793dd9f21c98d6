"""The lens as a view: what is chosen is looked up, an IOVA through its domain, and mistakes are told."""

from contextlib import contextmanager

import pytest

from hvcore import Config, Machine
from widgets.lens import LensView
from widgets.selection import Selection, domain_key

VMM = 0x77C00000
"""The core's region on this machine, with its secret at 0x9000."""


@pytest.fixture(scope="module")
def run():
    with Machine.load("q35-6g") as machine:
        yield machine.boot(Config(VTD_TRANS=True))


@pytest.fixture
def lens(run):
    return LensView(run)


def facts(lens):
    return {about: says for about, says, _ in lens.facts}


def test_nothing_is_chosen_at_first(lens):
    assert (lens.address, lens.facts) == ("", []) and "Choose an address" in lens.said
    assert lens.figure.table == ""


def test_a_physical_address_is_looked_up(lens, run):
    lens.selection.choose(address=VMM + 0x9000)
    assert (lens.address, lens.said) == ("0x77c09000", "host-physical 0x77c09000")
    assert facts(lens)["core"] == "its secret"
    assert [[f.about, f.says] for f in run.lens(VMM + 0x9000).facts] == [row[:2] for row in lens.facts[:-1]]
    assert "secret" in lens.figure.table and "0x77c09000" in lens.figure.alt


def test_who_wrote_it_last_is_told():
    with Machine.load("q35-6g") as machine:
        run = machine.boot(Config(VTD_TRANS=False))
        lens = LensView(run)
        lens.selection.choose(address=VMM + 0x9000)
        assert facts(lens)["last written by"] == "the core's policy, in the phase vmm laid"
        run.guest.command(f"dma w {VMM + 0x9000:#x} 8")
        lens.show_run(run)
        assert "00:03.0" in facts(lens)["last written by"]
        lens.selection.choose(address=run.units[0].base)
        assert "last written by" not in facts(lens)
        lens.selection.choose(address=(1 << 64) - 1)
        assert "last written by" not in facts(lens)


@pytest.mark.parametrize("by", ["domain", "device"])
def test_an_iova_is_followed_through_its_domain(lens, run, by):
    domain = run.domains[0]
    chosen = {"domain": {"domain": domain_key(domain.unit, domain.did)}, "device": {"device": 0x10}}[by]
    lens.selection.choose(address=0x100123, space="iova", **chosen)
    assert lens.said == "IOVA 0x100123 of domain 0 leads to host-physical 0x100123 (rw)"
    lens.selection.choose(address=0x1_8000_0000, space="iova", **chosen)
    assert "of domain 0: nothing mapped, no device of it gets there" in lens.said and lens.facts


def test_an_iova_that_leads_elsewhere_is_looked_up_where_it_leads():
    with Machine.load("q35-2g") as machine:
        run = machine.boot(Config(VTD_TRANS=True))
        leaf = run.what_if(0x10, 0x100000).steps[-2]
        machine.pc.memory.write64(leaf.address, 0x200003)
        lens = LensView(run)
        lens.selection.choose(address=0x100123, space="iova", device=0x10)
        assert lens.said == "IOVA 0x100123 of domain 0 leads to host-physical 0x200123 (rw)"
        assert lens.facts[0][1].startswith("the 8 bytes at 0x200120")


def test_one_choice_is_one_look_and_the_guard_is_held(run):
    held = []

    @contextmanager
    def guard():
        held.append("in")
        yield
        held.append("out")

    lens = LensView(run, guard=guard)
    assert held == []
    lens.selection.choose(address=0x1000, space="iova", device=0x10, domain="", fault=0)
    assert held == ["in", "out"]
    lens.selection.fault = None
    assert held == ["in", "out"]


def test_a_run_that_is_over_is_told_and_the_next_one_shown():
    with Machine.load("q35-2g") as machine:
        old, chosen = machine.boot(Config(VTD_TRANS=True)), Selection()
        lens = LensView(old, chosen)
        new = machine.reboot(VTD_TRANS=False)
        chosen.choose(address=0x100000)
        assert "is over" in lens.said and lens.facts == []
        lens.show_run(new)
        assert lens.said == "host-physical 0x100000" and "translation is off" in str(lens.facts)
