import random

import pytest
from snapshotfacts import different, facts, memory_digest

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from hvcore.machine.memory import Memory
from hvcore.snapshot.image import Image


def kept(every_ms: float = 1, **options: object) -> Machine:
    m = Machine.load("q35-6g")
    m.keep_history(every_ms)
    m.boot(Config(**options))       # type: ignore[arg-type]
    return m


def test_keeping_moments_changes_nothing() -> None:
    with Machine.load("q35-6g") as plain, kept(PROFILE="mended") as m:
        plain.boot(Config(PROFILE="mended"))
        assert different(facts(plain), facts(m)) == []
        assert len(m.snapshots) > 3 and m.snapshots[0].time == 0 and m.snapshots[0].what == "the guest begins"
        times = [moment.time for moment in m.snapshots]
        assert times == sorted(times)
        assert "number" in str(m.snapshots) and len(m.snapshots.frame) == len(m.snapshots)


def test_from_every_moment_it_goes_on_to_the_same_end() -> None:
    with kept() as m:
        end = facts(m)
        chance = random.Random(1)
        while len(m.snapshots) > 1:
            moment = m.snapshots[chance.randrange(len(m.snapshots) - 1)]
            back = m.rewind(to=moment)
            assert back == moment and m.pc.clock.now == moment.time
            assert m.state in ("stopped", "waiting")
            assert m.snapshots[-1].number == moment.number
            m.resume()
            assert different(end, facts(m)) == []
            m.rewind(to=moment)
            if moment.number == 1:
                break


def test_two_boots_have_their_moments_at_the_same_places() -> None:
    with kept(VTD_TRANS=False) as one, kept(VTD_TRANS=False) as other:
        assert [m.time for m in one.snapshots] == [m.time for m in other.snapshots]


def test_before_a_fault_nothing_was_blocked_and_then_it_is_again() -> None:
    with kept() as m:
        run = m.run
        assert run is not None
        fault, blocked = run.faults[0], next(d for d in run.dma if d.result == "blocked")
        for to in (fault, blocked, blocked.time):
            moment = m.rewind(to=to)
            assert moment.time < blocked.time and m.run is run and run.live
            assert not len(run.faults) and run.outcome == "stopped"
            assert all(d.time < blocked.time for d in run.dma)
            m.resume()
            assert run.faults[0] == fault and run.outcome == "disk-lost"


def test_from_a_moment_another_way_can_be_gone() -> None:
    """Translation is switched off by hand before the driver asks for its first page: the disk is there."""
    with kept() as m:
        assert m.run is not None and m.run.outcome == "disk-lost"
        m.rewind(to=m.run.faults[0])
        unit = m.pc.units[0]
        unit.mmio_write(0x18, 4, 0)
        m.resume()
        assert m.run.outcome == "up" and not len(m.run.faults)
        assert "TE off" in [event.what for event in m.run.history]


def test_stepping_on_from_a_moment() -> None:
    with kept() as m:
        assert m.run is not None
        m.rewind(to=m.run.faults[0])
        first = [str(step) for step in m.step(20)]
        m.rewind(to=m.snapshots[-1])
        assert [str(step) for step in m.step(20)] == first


def test_before_an_event_and_before_now() -> None:
    with kept(VTD_TRANS=True) as m:
        assert m.run is not None
        ready = next(event for event in m.run.history if event.what == "guest ready")
        moment = m.rewind(to=ready)
        assert "lab: ready" not in m.run.console.guest
        m.resume()
        assert "lab: ready" in m.run.console.guest
        now = m.pc.clock.now
        assert m.rewind().time < now
        assert moment.time <= m.pc.clock.now
        with pytest.raises(HvlabError, match="no moment before 0 ns is kept"):
            m.rewind(to=next(event for event in m.run.history if event.what == "SRTP"))


def test_moments_on_demand() -> None:
    with Machine.load("q35-6g") as m:
        m.boot(Config(VTD_TRANS=False))
        here = facts(m)
        moment = m.remember("before the write")
        m.send("nvme load 0x1000000 9\nnvme read 9\n")
        assert different(here, facts(m))
        assert m.rewind(to=moment) == moment and m.state == "waiting"
        assert different(here, facts(m)) == []
        assert [s.what for s in m.snapshots] == ["before the write"]


@pytest.mark.parametrize("options", [{"PROFILE": "mended", "TINYVISOR": True}, {"PROFILE": "mended", "NVME_DRIVER": True},
                                     {"DMAR_PASS_THROUGH": True, "VTD_TRANS": False}])
def test_with_two_guests_a_storage_driver_or_the_units_passed_through(options: dict[str, bool]) -> None:
    with kept(1, **options) as m:
        end = facts(m)
        for moment in [*m.snapshots][::-3]:
            m.rewind(to=moment)
            m.resume()
            assert different(end, facts(m)) == []


def test_a_guest_that_ended_can_be_gone_back_from() -> None:
    with kept(VTD_TRANS=False) as m:
        m.remember("alive")
        m.send("crash\n")
        assert m.state == "ended"
        m.rewind(to=m.snapshots[-1] if m.snapshots[-1].what == "alive" else next(s for s in m.snapshots if s.what == "alive"))
        assert m.state == "waiting" and m.run is not None and m.run.outcome == "up"
        assert "lab>" in m.send("time\n")


def test_the_oldest_go_when_there_are_too_many() -> None:
    with Machine.load("q35-6g") as m:
        m.keep_history(0.2, most=2 << 20)
        m.boot(Config(VTD_TRANS=False))
        assert m.booting.history is not None and m.booting.history.size <= 4 << 20      # type: ignore[attr-defined]
        assert m.snapshots[0].number > 1
        with pytest.raises(HvlabError, match="no moment before"):
            m.rewind(to=1)


def test_another_run_has_moments_of_its_own() -> None:
    with kept(VTD_TRANS=False) as m:
        old = m.snapshots[2]
        m.reboot(VTD_TRANS=False)
        assert m.snapshots[0].number == 1 and m.snapshots[0].time == 0
        with pytest.raises(HvlabError, match="is not kept any more"):
            m.rewind(to=type(old)(old.number + 1000, old.time, old.what, old.size))


def test_without_a_past_there_is_nothing_to_go_back_to() -> None:
    with Machine.load("q35-6g") as m:
        with pytest.raises(HvlabError, match=r"keep_history\(\) first"):
            m.rewind()
        m.boot(Config(VTD_TRANS=False))
        assert not len(m.snapshots) and "keep_history" in str(m.snapshots)
        m.keep_history(None)
        with pytest.raises(HvlabError, match="is no moment"):
            m.rewind(to="yesterday")
        for wrong in (-1, float("nan"), "1", True, 1e-9):
            with pytest.raises(HvlabError):
                m.keep_history(wrong)       # type: ignore[arg-type]
        m.keep_history(0)
        assert m.booting.history is None


def test_kept_while_it_runs_and_gone_back_to_while_it_runs() -> None:
    with Machine.load("q35-6g") as m:
        m.boot(Config(VTD_TRANS=False))
        m.key_in("nvme probe\n" * 3)
        m.resume(0.002)
        m.keep_history(0.5)
        m.resume()
        end = facts(m)
        m.rewind(to=m.snapshots[0])
        m.resume()
        assert different(end, facts(m)) == []


@pytest.mark.parametrize("seed", range(20))
def test_an_image_goes_back_through_any_changes(seed: int) -> None:
    chance = random.Random(seed)
    memory = Memory(((0, 64 * 4096), (128 * 4096, 200 * 4096)))
    image, digests, undos = Image(), [], []

    class Bench:
        class pc:       # noqa: N801
            pass

    Bench.pc.memory = memory        # type: ignore[attr-defined]
    for _ in range(12):
        for _ in range(chance.randrange(20)):
            page = chance.choice([chance.randrange(64), chance.randrange(128, 200)])
            memory.write(page * 4096 + chance.randrange(4000), bytes([chance.randrange(256)]) * 8)
            if chance.random() < 0.3:
                memory.u8(page * 4096, 4096)[:] = 0
        undos.append(image.follow(memory))
        digests.append(memory_digest(Bench))        # type: ignore[arg-type]
    for undo, digest in zip(reversed(undos), reversed(digests), strict=True):
        image.put(memory)
        assert memory_digest(Bench) == digest       # type: ignore[arg-type]
        image.undo(undo)
    image.put(memory)
    assert not memory.words.any()
    memory.close()
