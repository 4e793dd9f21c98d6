"""PCI functions as configuration space has them."""

from hvcore import Machine


def test_functions_of_a_machine_with_every_kind_of_bridge():
    with Machine.load("q35-2g-bridges") as machine:
        found = {f.source: f for f in machine.boot().functions}
    assert len(found) == 12
    disk, port, behind, deep = found[0x10], found[0xE0], found[0x220], found[0x530]
    assert (disk.kind, disk.vendor, disk.device, disk.unit, disk.secondary) == ("NVMe", 0x1B36, 0x10, 0xFED90000, None)
    assert (port.kind, port.secondary, port.subordinate, port.requester) == ("PCI bridge", 1, 2, 0xE0)
    assert behind.requester == 0x200
    assert deep.requester == 0xF0


def test_bus_numbers_are_those_that_the_bridge_holds_now():
    with Machine.load("q35-2g-bridges") as machine:
        run = machine.boot()
        machine.pc.root.functions[0, 0xE8].config[0x19] = 0
        assert next(f for f in run.functions if f.source == 0xE8).secondary is None
        kept = run.functions
        machine.boot()
        assert next(f for f in kept if f.source == 0xE8).secondary is None
        assert len(run.functions) == 12
        assert not run.live
