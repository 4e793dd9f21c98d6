"""AML is encoded as the specification says: its examples and limits, what its own decoder reads back, and what ACPI's compiler makes."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.spec import acpi, aml


def package_length(data: bytes) -> tuple[int, int]:
    """The length that an encoded package length states, and how many bytes it takes, read as section 20.2.4 says."""
    more = data[0] >> 6
    if not more:
        return data[0] & 0x3F, 1
    return data[0] & 0xF | sum(byte << 4 + 8 * i for i, byte in enumerate(data[1:1 + more])), 1 + more


@pytest.mark.parametrize(("size", "encoded"), [
    (0, "01"), (62, "3f"), (63, "41 04"), (0xFFD, "4f ff"), (0xFFE, "81 00 01"), (0xFFFFC, "8f ff ff"), (0xFFFFD, "c1 00 00 01"),
    (0xFFFFFFB, "cf ff ff ff")])
def test_a_package_length_takes_as_many_bytes_as_it_needs(size: int, encoded: str) -> None:
    assert aml.package_length(size) == bytes.fromhex(encoded)


@given(st.integers(0, 1 << 28) | st.integers(0, 1 << 13))
def test_a_package_length_counts_itself(size: int) -> None:
    try:
        data = aml.package_length(size)
    except ValueError:
        assert size > 0xFFFFFFB
    else:
        total, width = package_length(data)
        assert (total - width, len(data)) == (size, width)


@pytest.mark.parametrize(("path", "encoded"), [
    ("", b"\0"), ("\\", b"\\\0"), ("_SB", b"_SB_"), ("\\_SB", b"\\_SB_"), ("PIC", b"PIC_"), ("^^A.B1", b"^^\x2eA___B1__"),
    ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"), ("\\_SB.PCI0.COM1._CRS", b"\\\x2f\x04_SB_PCI0COM1_CRS")])
def test_names(path: str, encoded: bytes) -> None:
    assert aml.name_string(path) == encoded


@pytest.mark.parametrize("path", ["1AB", "toolow", "ABCDE", "A..B", "A.", "A-B", "A\\B", "PCI0._crs"])
def test_what_is_no_name(path: str) -> None:
    with pytest.raises(ValueError, match="is no ACPI name"):
        aml.name_string(path)


@pytest.mark.parametrize(("value", "encoded"), [
    (0, "00"), (1, "01"), (2, "0a 02"), (0xFF, "0a ff"), (0x100, "0b 00 01"), (0xFFFF, "0b ff ff"), (0x10000, "0c 00 00 01 00"),
    (0xFFFFFFFF, "0c ff ff ff ff"), (1 << 32, "0e 00 00 00 00 01 00 00 00"), ((1 << 64) - 1, "ff")])
def test_integers(value: int, encoded: str) -> None:
    assert aml.integer(value) == bytes.fromhex(encoded)


def test_other_data() -> None:
    assert aml.string("ACPI0007") == b"\x0dACPI0007\0"
    assert aml.buffer(b"abc") == b"\x11\x06\x0a\x03abc"
    assert aml.buffer(b"") == b"\x11\x02\0"
    assert aml.package(aml.integer(7), aml.integer(0)) == b"\x12\x05\x02\x0a\x07\0"
    assert aml.package(*[b"\0"] * 256) == b"\x13\x45\x10\x0b\0\1" + bytes(256)
    assert aml.eisa_id("PNP0A03") == bytes.fromhex("0c 41 d0 0a 03"), "as in section 19.6.37"
    assert aml.uuid("33DB4D5B-1FF7-401C-9657-7441C03DD766") == b"\x11\x13\x0a\x10" + bytes.fromhex("5b4ddb33f71f1c4096577441c03dd766")


def test_resource_descriptors() -> None:
    assert aml.io(0x3F8, 8) == bytes.fromhex("47 01 f803 f803 01 08")
    assert aml.irq(4) == bytes.fromhex("22 1000") and aml.irq(0, 15) == bytes.fromhex("22 0180")
    assert aml.memory32_fixed(0xFED90000, 0xFED91000) == bytes.fromhex("86 0900 01 0000d9fe 00100000")
    assert aml.word_bus(0x80, 0xFF) == bytes.fromhex("88 0d00 02 0c 00 0000 8000 ff00 0000 8000")
    assert aml.word_io(0xD00, 0x10000) == bytes.fromhex("88 0d00 01 0c 03 0000 000d ffff 0000 00f3")
    assert aml.dword_memory(0xA0000, 0xC0000) == bytes.fromhex("87 1700 00 0c 01 00000000 00000a00 ffff0b00 00000000 00000200")
    high = aml.qword_memory(1 << 32, 1 << 40)
    assert high[:6] == bytes.fromhex("8a 2b00 00 0c 01") and high[14:30] == ((1 << 32).to_bytes(8, "little") + b"\xff" * 5 + bytes(3))
    assert aml.qword_memory(1 << 32, 1 << 40, consumed=True)[4] == 0x0D
    assert aml.resources(aml.irq(4)) == b"\x11\x08\x0a\x05\x22\x10\0\x79\0"


@pytest.mark.parametrize("wrong", [
    lambda: aml.integer(1 << 64), lambda: aml.integer(-1), lambda: aml.string("ä"), lambda: aml.string("a\0"),
    lambda: aml.eisa_id("PNPA03"), lambda: aml.eisa_id("pnp0a03"), lambda: aml.uuid("33DB4D5B"), lambda: aml.method("A", 8),
    lambda: aml.io(0xFFFF, 2), lambda: aml.word_io(0, 0x10000), lambda: aml.word_io(8, 8), lambda: aml.word_bus(5, 4),
    lambda: aml.dword_memory(1 << 31, (1 << 32) + 1), lambda: aml.memory32_fixed(1 << 32, (1 << 32) + 1), lambda: aml.qword_memory(-1, 8)])
def test_what_cannot_be_encoded(wrong: object) -> None:
    assert callable(wrong)
    with pytest.raises(ValueError, match=r"is no|does not fit|0 to 7 arguments"):
        wrong()


ASL = """\
DefinitionBlock ("", "DSDT", 2, "HVLAB ", "HVLAB   ", 0x00000001)
{
    Scope (\\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CRS, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0x80, 0xFF, 0, 0x80)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0D00, 0xFFFF, 0, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite, 0, 0x90000000, 0xFEBFFFFF, 0,
                             0x6EC00000)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite, 0, 0x6000000000, 0xFFFFFFFFFF, 0,
                             0xA000000000)
                QWordMemory (ResourceConsumer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite, 0, 0x100000000, 0x10FFFFFFF, 0,
                             0x10000000)
                Memory32Fixed (ReadWrite, 0xFED90000, 0x1000)
                IO (Decode16, 0x03F8, 0x03F8, 1, 8)
                IRQNoFlags () {3, 4}
            })
            Name (TEXT, "some text")
            Name (LIST, Package () {0x001FFFFF, 0, One, 0x12345678, 0xFFFFFFFFFFFFFFFF, Package () {}, "x", Buffer () {1, 2, 3}})
            Method (_OSC, 4, Serialized)
            {
                CreateDWordField (Arg3, 0, CDW1)
                CreateDWordField (Arg3, 8, CDW3)
                Store (CDW3, Local0)
                And (CDW3, 0x10, CDW3)
                Or (CDW1, And (LNotEqual (CDW3, Local0), 0x10), CDW1)
                Or (CDW1, And (LNotEqual (Arg0, ToUUID ("33DB4D5B-1FF7-401C-9657-7441C03DD766")), 4), CDW1)
                Return (Arg3)
            }
        }
    }
}
"""


def own() -> bytes:
    """What `ASL` says."""
    status, control = aml.name_string("CDW1"), aml.name_string("CDW3")
    foreign = aml.not_equal(aml.arg(0), aml.uuid("33DB4D5B-1FF7-401C-9657-7441C03DD766"))
    return aml.scope("_SB", aml.device(
        "PCI0", aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CRS", aml.resources(
            aml.word_bus(0x80, 0xFF), aml.word_io(0xD00, 0x10000), aml.dword_memory(0x90000000, 0xFEC00000),
            aml.qword_memory(0x6000000000, 1 << 40), aml.qword_memory(1 << 32, 0x110000000, consumed=True),
            aml.memory32_fixed(0xFED90000, 0xFED91000), aml.io(0x3F8, 8), aml.irq(3, 4))),
        aml.name("TEXT", aml.string("some text")),
        aml.name("LIST", aml.package(*(aml.integer(n) for n in (0x1FFFFF, 0, 1, 0x12345678, (1 << 64) - 1)), aml.package(), aml.string("x"),
                                     aml.buffer(b"\1\2\3"))),
        aml.method("_OSC", 4, aml.create_dword_field(aml.arg(3), 0, "CDW1"), aml.create_dword_field(aml.arg(3), 8, "CDW3"),
                   aml.store(control, aml.local(0)), aml.and_(control, aml.integer(0x10), control),
                   aml.or_(status, aml.and_(aml.not_equal(control, aml.local(0)), aml.integer(0x10)), status),
                   aml.or_(status, aml.and_(foreign, aml.integer(4)), status), aml.return_(aml.arg(3)), serialized=True)))


@pytest.mark.needs("iasl")
def test_acpis_compiler_makes_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "own.asl").write_text(ASL)
    done = subprocess.run(["iasl", "own.asl"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "0 Errors, 0 Warnings" in done.stdout, done.stdout
    assert (tmp_path / "own.aml").read_bytes()[acpi.HEADER_SIZE:] == own()
