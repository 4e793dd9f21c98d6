"""Predictions and exercises: right answers pass, typical wrong ones get the hint that fits, no answer is no error."""

from collections.abc import Callable, Iterator
from string import Formatter
from typing import Any

import pytest

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from widgets.course import Card, Course, Predict, check
from widgets.exercises import EXERCISES, RIGHT, broken_machine, crime_scene, examine
from widgets.exercises_attacks import _leaks
from widgets.exercises_machines import _one_less
from widgets.hints import LANGUAGES, hints, more, said

VMM = 0x77C00000


@pytest.fixture(scope="module")
def q35() -> Iterator[Machine]:
    with Machine.load("q35-6g") as machine:
        machine.boot(Config())
        yield machine


@pytest.fixture(scope="module")
def desktop() -> Iterator[Machine]:
    with Machine.load("nvme-desktop-16g") as machine:
        machine.boot(Config())
        yield machine


# --- predictions

def test_a_prediction_is_held_beside_what_the_machine_did():
    disk = Predict("Disk?", {"up": "yes", "disk-lost": "no"})
    assert disk.prediction is None
    disk.choose("up")
    assert disk.prediction == "up"
    assert repr(disk.reveal("disk-lost")) == "✗ not as predicted: what did you overlook?\n  Your prediction: yes\n  The machine: no"
    assert disk.right is False
    disk.choose("disk-lost")
    assert disk.reveal("disk-lost").sign == "✓"
    assert disk.right is True


def test_the_browser_chooses_by_position():
    disk = Predict("Disk?", {"up": "yes", "disk-lost": "no"})
    disk.set_state({"chosen": 1})
    assert disk.prediction == "disk-lost"


def test_without_a_prediction_only_the_answer_is_shown():
    assert repr(Predict("?", ["a", "b"], lang="ja").reveal("b")) == "… 予想なし\n  実際の結果: b"


@pytest.mark.parametrize(("answer", "evidence"), [("b", None), (lambda text: text[-1], "ab"), (None, "b")])
def test_the_answer_is_a_value_a_function_or_what_is_revealed(answer, evidence):
    question = Predict("?", ["a", "b"], answer)
    question.choose("b")
    assert question.reveal(evidence).sign == "✓"


def test_an_answer_that_is_no_option_is_shown_as_it_is():
    assert Predict("?", ["a"]).reveal("vmm-panic").lines == ("The machine: vmm-panic",)


def test_a_prediction_has_a_form_without_a_kernel_in_which_text_is_text():
    data, _ = Predict("<b>?", ["<i>one", "two"])._repr_mimebundle_()
    assert "&lt;b&gt;?" in data["text/html"]
    assert "&lt;i&gt;one" in data["text/html"]
    assert data["text/plain"] == "<b>?\n  ( ) <i>one\n  ( ) two"


def test_mistakes_of_the_author_are_told():
    with pytest.raises(HvlabError, match="options"):
        Predict("?", [])
    with pytest.raises(HvlabError, match="no option"):
        Predict("?", ["a"]).choose("z")
    with pytest.raises(HvlabError, match="language"):
        Course("fr")
    with pytest.raises(HvlabError, match="no exercise"):
        check("99-nothing", 1)


# --- exercises on the student's machine

def key(name: str, answer: Any, machine: Machine | None = None) -> str:
    return examine(name, answer, machine).key


@pytest.mark.parametrize(("answer", "found"), [
    ("00:02.0", RIGHT), (0x10, RIGHT), ("00:03.0", "other device"), ("09:00.0", "no device"), (0xFED90000, "unit"), ("nvme", "no id"),
    (1.5, "no id")])
def test_which_device_was_stopped(q35, answer, found):
    assert key("01-source", answer, q35) == found


@pytest.mark.parametrize(("answer", "found"), [
    (VMM - 0x1000, RIGHT), (VMM, "blocked"), (VMM - 0x2000, "not last"), (VMM + (128 << 20), "above"), (VMM - 1, "unaligned"),
    ("x", "number")])
def test_the_edge_of_what_a_device_reads(q35, answer, found):
    assert key("01-edge", answer, q35) == found


@pytest.mark.parametrize(("answer", "found"), [
    (0x7FFD7000 - VMM, RIGHT), (128 << 20, "only vmm"), (131, "mebibytes"), (VMM - 0x7FFD7000, "sign"), (1, "other"), (True, "number")])
def test_what_the_guest_lost(q35, answer, found):
    assert key("02-lost", answer, q35) == found


@pytest.mark.parametrize(("answer", "found"), [
    (0xFED90000, RIGHT), (0xFED91000, "another unit"), (0xDA2BA000, "rmrr"), (0x18_0000, "offset"), (7, "other"), ("x", "number")])
def test_the_first_unit_of_the_table(desktop, answer, found):
    assert key("03-drhd", answer, desktop) == found


@pytest.mark.parametrize(("answer", "found"), [
    ({"00:02.0": 0xFED90000, "01:00.0": 0xFED91000}, RIGHT), ({"01:00.0": 0xFED90000}, "other unit"), ({"00:1a.0": 0xDA2BA000}, "no unit"),
    ({"x": 1}, "no device"), (0xFED90000, "no dict")])
def test_which_unit_sees_a_device(desktop, answer, found):
    assert key("03-units", answer, desktop) == found


def test_the_walk_by_hand(desktop):
    walk = desktop.pc.units[1].walk(0x0100, 0x12345678)
    root, context, _, level_2, level_1 = walk.steps
    assert key("04-context-table", context.table, desktop) == RIGHT
    wrong = {root.entry: "present bit", root.table: "root table", root.address: "entry address", 0: "other bus", 5: "other", "x": "number"}
    assert {answer: key("04-context-table", answer, desktop) for answer in wrong} == wrong
    top = walk.context.root
    answers = {(3, 0, top): RIGHT, (1, 0, top): "aw", (4, 0, top): "levels", (3, 1, top): "did", (3, 0, top | 1): "flags",
               (3, 0, 8): "root"}
    assert {answer: key("04-context", answer, desktop) for answer in answers} == answers
    assert key("04-context", 3, desktop) == "no triple"
    leaves = {(level_1.address, level_1.entry): RIGHT, (level_1.address, 0): "entry", (level_1.table, 0): "index",
              (level_2.address, 0): "level 2", (level_1.table + level_1.index, 0): "eight bytes", (1, 2): "other"}
    assert {answer: key("04-leaf", answer, desktop) for answer in leaves} == leaves
    assert key("04-leaf", 1, desktop) == "no pair"


def test_an_exercise_on_a_machine_says_that_it_needs_one():
    with pytest.raises(HvlabError, match="has booted"):
        check("01-source", "00:02.0")


# --- exercises that boot machines of their own

def place(size_of_step: int = 4 << 20, below: int = 1 << 32, pick: Callable[..., int] = max) -> Callable[..., int]:
    def function(entries: Any, size: int) -> int:
        fits = []
        for e in entries:
            start, end = -(-e.start // size_of_step) * size_of_step, min(e.end, below) // size_of_step * size_of_step
            if e.usable and e.start < below and end - start >= size:
                fits.append(end - size)
        return pick(fits)
    return function


@pytest.mark.parametrize(("answer", "found"), [
    (place(), RIGHT), (place(size_of_step=4096), "unaligned"), (place(below=1 << 40), "above 4 GiB"), (lambda e, s: 0x400000, "low"),
    (lambda e, s: 0xC0000000, "not usable"), (lambda e, s: None, "no address"), (lambda e, s: 1 // 0, "raised"), (5, "no function")])
def test_where_the_hypervisor_goes(answer, found):
    assert key("02-place", answer) == found


def test_a_wrong_table_and_its_mending():
    with broken_machine() as machine:
        table = bytearray(machine.description.dmar or b"")
        assert "no unit covers 00:02.0" in machine.boot().why
    assert key("03-mend", bytes(table)) == "not up"
    table[table.index(bytes((1, 8, 0, 0, 0, 0, 2, 1))) + 7] = 0
    assert key("03-mend", table) == "checksum"
    table[9] = (table[9] - sum(table)) % 256
    assert key("03-mend", table) == RIGHT
    assert key("03-mend", table + b"\0") == "length"
    assert key("03-mend", b"\0\0\0\0" + table[4:]) == "signature"
    assert key("03-mend", table.hex()) == "no bytes"
    torn = bytearray(table)
    torn[50] = 0
    torn[9] = (torn[9] - sum(torn)) % 256
    assert key("03-mend", torn) == "not used"


def walk(levels: int | None = None, superpages: bool = True, every_level: bool = True, present: bool = True) -> Callable[..., int | None]:
    """A walk, with what a student may forget."""
    def function(memory: Any, root_table: int, source: int, iova: int) -> int | None:
        root = memory.read64(root_table + 16 * (source >> 8))
        if not root & 1:
            return None
        low, high = memory.u64((root & ~0xFFF) + 16 * (source & 0xFF), 2).tolist()
        if present and not low & 1:
            return None
        table = low & ~0xFFF
        for level in range(levels or (high & 7) + 2, 0, -1):
            shift = 12 + 9 * (level - 1)
            entry = memory.read64(table + 8 * (iova >> shift & 511))
            if not entry & (1 if every_level or level == 1 else 3):
                return None
            table = entry & ~0xFFF
            if level == 1 or superpages and entry & 0x80:
                return int(table + iova % (1 << shift))
        return None
    return function


@pytest.mark.parametrize(("answer", "found"), [
    (walk(), RIGHT), (walk(levels=3), "levels"), (walk(superpages=False), "superpage"), (walk(every_level=False), "upper bit"),
    (walk(present=False), "no context"), (lambda m, r, s, i: i, "address"), (lambda m, r, s, i: m.nothing, "raised"),
    (None, "not answered"), (7, "no function")])
def test_a_walk_as_a_function(answer, found):
    assert key("04-walk", answer) == found


@pytest.mark.parametrize(("answer", "found"), [
    (["poke 0xfed90018 0", "dma r 0x77c00000 64"], RIGHT), (["dma r 0x77c00000 64"], "blocked"), (["poke 0xfed90018 0"], "no read"),
    (["peek 0x77c00000 64"], "not tried"), (["crash", "help"], "crash"), ("dma", "no commands")])
def test_the_attack(answer, found):
    assert key("05-escape", answer) == found


@pytest.mark.parametrize(("answer", "found"), [
    (Config(HIDE_VTD_REGS=True), RIGHT), (Config(PROFILE="mended"), RIGHT), (Config(), "escaped"), (Config(VTD_TRANS=False), "off"),
    (Config(IOMMU_MAP_END="e820"), "panic"), ("HIDE_VTD_REGS", "no config")])
def test_the_lock(answer, found):
    assert key("05-lock", answer) == found


@pytest.mark.parametrize(("answer", "found"), [
    (4105, RIGHT), (4096, "level 1 only"), (4104, "no top"), (2053, "4 GiB"), (3079, "ram size"), (2 << 20, "leaves"), (9, "other"),
    ("x", "number")])
def test_how_many_tables(answer, found):
    assert key("06-tables", answer) == found


@pytest.mark.parametrize(("answer", "found"), [(63, RIGHT), (62, "more fits"), (64, "too much"), (3, "range"), ("x", "number")])
def test_how_far_ram_may_reach(answer, found):
    assert key("06-limit", answer) == found


@pytest.mark.parametrize(("options", "found"), [
    ({"IOMMU_MAP_END": "ram", "IOMMU_SUPERPAGES": True}, RIGHT), ({"IOMMU_MAP_END": "ram", "VMM_SIZE_MIB": 256}, RIGHT),
    ({"IOMMU_MAP_END": "ram"}, "vmm-panic"), ({}, "disk-lost"), ({"VTD_TRANS": False}, "unprotected")])
def test_a_mend_for_the_server(options, found):
    assert key("06-mend", Config(**options)) == found


def find(in_map: bool = True, below: int = 1 << 32, pick: Callable[..., int] = max) -> Callable[..., int]:
    """A search for the hypervisor in the guest's map, with what a student may forget."""
    def function(command: Callable[[str], str]) -> int:
        lines = command("e820").splitlines()
        spans = [tuple(int(n, 16) for n in line.split("[mem ")[1].split("]")[0].split("-")) for line in lines]
        ends = [end + 1 for (_, end), line in zip(spans, lines, strict=True) if line.endswith("usable") and end < below]
        return pick(at for at in ends if not in_map or not any(start <= at <= end for start, end in spans))
    return function


@pytest.mark.parametrize(("answer", "found"), [
    (find(), RIGHT), (find(in_map=False), "in the map"), (find(below=1 << 64), "other"), (lambda command: 0x9000_0000, "other"),
    (lambda command: VMM + 0x1000, "not its start"), (lambda command: command("attack steal-key") and VMM, "by hand"),
    (lambda command: command("e820"), "no address"), (lambda command: 1 // 0, "raised"), (VMM, "no function")])
def test_the_search_for_the_hypervisor(answer, found):
    assert key("07-find", answer) == found


LEVEL_2, LEVEL_1 = 0x77C18DF0, 0x77C17048
"""The nested entries on the way to the key on q35-6g: of 2 MiB, and of 4 KiB."""


@pytest.mark.parametrize(("answer", "found"), [
    ((LEVEL_2, VMM | 0x87), RIGHT), ((LEVEL_1, VMM + 0x9000 | 5), RIGHT), ((0x77C15008, 0x4000_0087), RIGHT),
    ((LEVEL_2, VMM | 0x86), "absent"), ((LEVEL_2, VMM | 0x83), "not user"), ((LEVEL_2, VMM | 7), "small"),
    ((LEVEL_2, VMM + (2 << 20) | 0x87), "elsewhere"), ((0x77C15008, VMM | 0x87), "other"), ((0x77C14000, VMM | 0x87), "crash"),
    ((0x500_0000, VMM | 0x87), "no entry"), ((VMM + 0x1060, VMM | 0x87), "no entry"), ((LEVEL_2, 1 << 64), "no pair"), (VMM, "no pair")])
def test_the_nested_entry_that_shows_the_key(answer, found):
    assert key("07-open", answer) == found


@pytest.mark.parametrize(("answer", "found"), [
    ((["nvme dump 0x77c09000 100", "nvme load 100 0x4000000"], 0x400_0000), RIGHT),
    ((["nvme dump 0x77c09000 100"], 0x400_0000), "on the disk"), ((["nvme load 100 0x4000000"], 0x400_0000), "not taken"),
    ((["dma r 0x77c09000 32", "nvme dump 0x77c09000 7", "nvme load 7 0x4000000"], 0x400_0000), "edu"),
    (([], VMM + 0x9000), "core's own"), (([], -1), "not taken"), ((["attack steal-key nvme"], 0x105_7200), "by hand"),
    ((["crash", "help"], 0), "crash"), (("nvme", 0), "no commands"), (["nvme dump 0x77c09000 100"], "no commands")])
def test_the_key_by_the_drive(answer, found):
    assert key("07-drive", answer) == found


def mends(**changed: str) -> dict[str, str]:
    right = {"clear-te": "HIDE_VTD_REGS", "before-te": "EARLY_PROTECTION", "forge-interrupt": "INTERRUPT_REMAPPING"}
    return right | {name.replace("_", "-"): option for name, option in changed.items()}


@pytest.mark.parametrize(("answer", "found"), [
    (mends(), RIGHT), (mends(clear_te="EARLY_PROTECTION"), "not stopped"), (mends(before_te="HIDE_VTD_REGS"), "not stopped"),
    (mends(forge_interrupt="VTD_TRANS"), "not stopped"), (mends(forge_interrupt="PROFILE"), "no option"),
    (mends(steal_key="VTD_TRANS"), "no dict"), ("HIDE_VTD_REGS", "no dict")])
def test_which_option_stops_which_attack(answer, found):
    assert key("08-mends", answer) == found


@pytest.fixture(scope="module")
def mended() -> Iterator[Machine]:
    with Machine.load("q35-6g-intremap") as machine:
        machine.boot(Config(PROFILE="mended"))
        yield machine


@pytest.mark.parametrize(("part", "rights", "found"), [
    (0x5000, 3, RIGHT), (0x5000, 1, RIGHT), (0x5000, 0, "no hole"), (0x9000, 1, "caught"), (0x2000, 2, "caught")])
def test_a_hole_that_no_attack_finds(mended, part, rights, found):
    entry = mended.pc.units[0].walk(0x18, VMM + part).steps[-1]
    assert key("08-hole", (entry.address, entry.entry | rights)) == found


@pytest.mark.parametrize(("answer", "found"), [
    ((0x500_0000, 7), "no hole"), ((0x500_0001, 7), "no word"), ((0x9000_0000, 7), "no word"), ((0, -1), "no pair"), (VMM, "no pair")])
def test_what_is_no_hole(answer, found):
    assert key("08-hole", answer) == found


def test_who_opened_the_hypervisor():
    with crime_scene() as scene:
        assert scene.run is not None
        claims = scene.run.proof.claims
        assert [c.holds for c in claims if "guest's processor cannot write the core's memory" in c.claim] == [False]
        root, upper, entry = (s.entry for s in scene.run.proof.claim("cannot write the core's memory").counterexample.walk.steps)
        harmless = (entry & ~0x1FF) - 0x10
        answers = {(entry, "00:02.0"): RIGHT, (entry, 0x10): RIGHT, (entry, "00:03.0"): "other device",
                   (upper, "00:02.0"): "not by a device", (root, "00:03.0"): "not by a device", (harmless, "00:03.0"): "not the way",
                   ("x", "00:02.0"): "no pair", (entry, "nvme"): "no pair"}
        assert {answer: key("08-culprit", answer, scene) for answer in answers} == answers
        assert [scene.run.who_wrote(at)[0].who for at in (entry, harmless)] == ["00:02.0", "00:03.0"]
        assert key("08-culprit", entry, scene) == "no pair"


@pytest.fixture(scope="module")
def split() -> Iterator[Machine]:
    with Machine.load("q35-6g") as machine:
        machine.boot(Config(PROFILE="mended", TINYVISOR=True))
        yield machine


@pytest.mark.parametrize(("answer", "found"), [
    (0x5DE0_0000, RIGHT), (0x400_0000, "guest 1's"), (VMM + 0x400_0000, "core's own"), (0x5DE0_0010, "elsewhere"),
    (0x9000_0000, "no memory"), (-1, "no memory"), ("x", "number")])
def test_where_guest_2_has_a_byte(split, answer, found):
    assert key("09-where", answer, split) == found


def test_a_machine_of_one_guest_has_no_guest_2(q35):
    assert key("09-where", 0x5DE0_0000, q35) == "not split"


@pytest.mark.parametrize(("options", "found"), [
    ({"GUEST2_DEVICES": "00:02.0"}, RIGHT), ({"GUEST2_DEVICES": "00:02.0,00:03.0", "PROFILE": "mended"}, RIGHT), ({}, "no disk"),
    ({"GUEST2_DEVICES": "00:02.0", "VTD_TRANS": False}, "not up"), ({"TINYVISOR": False}, "not split"),
    ({"GUEST2_DEVICES": "00:05.0"}, "refused"), ({"GUEST2_DEVICES": "00:02.0", "IOMMU_MAP_END": "e820"}, "panic")])
def test_the_disk_for_guest_2(options, found):
    assert key("09-disk", Config(**({"TINYVISOR": True} | options))) == found


def test_who_leaks():
    with Machine.load("q35-6g") as machine:
        run = machine.boot(Config(TINYVISOR=True, GUEST2_DEVICES="00:02.0"))
        first, second = run.guests
        assert not _leaks(run, first, second)
        walk = machine.pc.units[0].walk(0x10, 0x500_0000).steps[-1]
        machine.pc.memory.write64(walk.address, 0x3000_0003)
        assert _leaks(run, first, second)


@pytest.mark.parametrize(("answer", "found"), [
    ({"04:05.0", "05:06.0"}, RIGHT), (["05:06.0", "04:05.0"], RIGHT), ({"04:05.0"}, "alone"), ({"04:05.0", "05:06.0", "00:1e.0"}, "bridge"),
    ({"04:05.0", "05:06.0", "03:00.0"}, "too many"), ({"03:00.0"}, "other"), ({"nvme"}, "no set"), ("04:05.0", "no set")])
def test_which_functions_go_together(answer, found):
    assert key("09-group", answer) == found


WIDTH = Config().QUIRKS - {"AGAW_FROM_LAST_UNIT"}
"""The bugs of the usual configuration without the one that a client PC's units meet."""


@pytest.mark.parametrize(("options", "found"), [
    ({"QUIRKS": WIDTH, "IOMMU_MAP_END": "ram"}, RIGHT), ({"QUIRKS": WIDTH, "IOMMU_MAP_END": "e820"}, RIGHT), ({}, "not up"),
    ({"QUIRKS": WIDTH}, "not up"), ({"IOMMU_MAP_END": "ram"}, "not up"), ({"VTD_TRANS": False}, "off"),
    ({"QUIRKS": WIDTH, "IOMMU_MAP_END": "ram", "HIDE_VTD_REGS": True}, "too much"), ({"PROFILE": "mended"}, "too much"),
    ({"QUIRKS": WIDTH - {"DRIVER_IN_ITS_OWN_HOLE"}, "IOMMU_MAP_END": "ram"}, "too much"),
    ({"TINYVISOR": True, "GUEST2_DEVICES": "1e:05.0"}, "refused")])
def test_the_smallest_change(options, found):
    assert key("10-change", Config(**options)) == found


def test_a_change_that_is_no_configuration_or_can_be_put_back_is_told():
    assert key("10-change", "IOMMU_MAP_END=ram") == "no config"
    assert list(_one_less(Config())) == []
    less = dict(_one_less(Config(PROFILE="mended")))
    assert list(less) == ["IOMMU_MAP_END", "IOMMU_SUPERPAGES", "HIDE_VTD_REGS", "EARLY_PROTECTION", "INTERRUPT_REMAPPING",
                          *(f"QUIRKS ({name})" for name in sorted(Config().QUIRKS - {"VISIBLE_VTD_REGS"}))]
    for change, quirk in (("HIDE_VTD_REGS", "VISIBLE_VTD_REGS"), ("QUIRKS (AGAW_FROM_LAST_UNIT)", "AGAW_FROM_LAST_UNIT")):
        assert sorted(less[change].QUIRKS) == [quirk]


@pytest.mark.parametrize(("answer", "found"), [
    (("01:00.0", "00:02.0"), RIGHT), (("00:02.0", "01:00.0"), "swapped"), (("00:03.0", "00:02.0"), "other function"),
    (("01:00.0", "00:03.0"), "no bridge"), (("01:00.0", "01:00.0"), "no bridge"), (("nvme", "00:02.0"), "no pair"),
    (("01:00.0", 0x10), "no pair"), ("01:00.0", "no pair")])
def test_where_the_core_stopped_and_what_the_table_names(answer, found):
    assert key("10-blame", answer) == found


# --- what is said

@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("answer", [..., None, (1, ...), {"a": ...}])
def test_no_answer_is_no_error(name, lang, answer):
    card = check(name, answer, lang=lang)
    assert card.sign == "…"
    assert ("not answered yet" if lang == "en" else "未回答") in repr(card)


def _texts() -> Iterator[tuple[str, dict[str, str]]]:
    for name, table in hints().items():
        if name != "more":
            yield from ((f"{name}.{k}", text) for k, text in table.items())


@pytest.mark.parametrize(("where", "text"), list(_texts()), ids=lambda v: v if isinstance(v, str) else "")
def test_every_sentence_is_there_in_both_languages_and_names_the_same_things(where, text):
    assert set(text) == set(LANGUAGES)
    fields = [{name for _, name, _, _ in Formatter().parse(text[lang]) if name} for lang in LANGUAGES]
    assert fields[0] >= fields[1]
    assert text["en"].isascii()
    assert not text["ja"].isascii()


def test_every_exercise_has_its_words():
    assert set(hints()) - {"common", "more"} == set(EXERCISES)
    assert set(hints()["more"]) <= set(EXERCISES)
    assert all("right" in hints()[name] for name in EXERCISES)


def test_a_finding_becomes_a_sentence_in_either_language():
    values = {"source": "00:02.0"}
    assert said("01-source", RIGHT, values, "en") == "The fault record names 00:02.0."
    assert said("01-source", RIGHT, values, "ja") == "フォールト記録にある要求元は 00:02.0 です。"
    assert said("01-edge", "number", {}, "en").startswith("Give a number")


def test_hints_grow_with_each_wrong_answer(q35):
    course = Course("en")
    lines = [course.check("01-edge", VMM, q35).lines for _ in range(4)]
    assert [len(said) for said in lines] == [1, 2, 3, 3]
    assert lines[2][1:] == more("01-edge", 2, "en")
    assert course.check("01-edge", ..., q35).sign == "…"


def test_progress_counts_what_was_solved_and_predicted(q35):
    course = Course("ja")
    assert repr(course.progress) == "… 0 / 0 問正解\n  0 / 0 件的中"
    course.check("01-edge", VMM, q35)
    course.check("01-edge", VMM - 0x1000, q35)
    guess = course.predict("?", ["a", "b"])
    guess.choose("a")
    guess.reveal("a")
    assert repr(course.progress) == "✓ 1 / 1 問正解\n  1 / 1 件的中"


def test_a_card_shows_text_as_text():
    assert "&lt;b&gt;" in Card("✓", "#000", "right", ("<b>",))._repr_html_()
    assert "type <code>a &lt; b</code> or a`" in Card("✓", "#000", "type `a < b` or a`")._repr_html_()
