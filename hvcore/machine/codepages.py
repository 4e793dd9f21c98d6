"""Code that is changed by another address than the one it runs at: the emulator forgets what it has translated of it.

A processor runs what lies in memory, whichever address it was written by.  The emulator keeps translated code, and looks for it when a page
is written only until the first write by an address that is not executable itself; then it takes such a page to be data.  So a Linux, whose
kernel writes a program's page by its own mapping of all memory, would run what had lain in that page before.

The library still has the places where QEMU, from which it comes, notes which pages hold code: `tlb_protect_code` and `tlb_unprotect_code`
do nothing in it.  `mend` puts a few bytes of machine code, for x86-64 Linux, behind the entries by which the library calls them and two
more: there is a bit for each page that holds code, and no page of those is ever taken to be data.  The entries are the process's; bits have
those processors that `CodePages` was made for, while they run.
"""

import ctypes
import mmap
import platform
from typing import Any

from unicorn import UC_ARCH_X86, UC_MODE_64, Uc, UcError
from unicorn import x86_const as x86

from ..spec.svm import EFER, EFER_LMA, EFER_LME, EFER_NXE
from . import emulator
from .library import Once, address_of, entries, exported, lasting_page

__all__ = ["CodePages"]

_LISTING = """
    e870000000          call 0x75                            # protect(emulator, address): the first code in a page
    741f                je 0x26
    488b08              mov rcx, qword ptr [rax]
    48c1ee0c            shr rsi, 12
    480fab31            bts qword ptr [rcx], rsi
    48ff4020            inc qword ptr [rax + 0x20]
    488b7810            mov rdi, qword ptr [rax + 0x10]      # writes by addresses that were found already are looked at again
    31f6                xor esi, esi
    4883caff            or rdx, -1
    ff25fa000000        jmp qword ptr [rip + 0xfa]
    ff25d4000000        jmp qword ptr [rip + 0xd4]           # 26

    e844000000          call 0x75                            # unprotect(emulator, address): no code is left in a page
    740c                je 0x3f
    488b08              mov rcx, qword ptr [rax]
    48c1ee0c            shr rsi, 12
    480fb331            btr qword ptr [rcx], rsi
    c3                  ret
    ff25c3000000        jmp qword ptr [rip + 0xc3]           # 3f

    e82b000000          call 0x75                            # invalidate(emulator, ..., address, ...): a page is written
    7404                je 0x50
    48895008            mov qword ptr [rax + 8], rdx
    ff25ba000000        jmp qword ptr [rip + 0xba]           # 50

    e81a000000          call 0x75                            # set_dirty(processor, ...): that page is taken to be data, unless it has code
    7411                je 0x6e
    488b08              mov rcx, qword ptr [rax]
    488b5008            mov rdx, qword ptr [rax + 8]
    48c1ea0c            shr rdx, 12
    480fa311            bt qword ptr [rcx], rdx
    7206                jb 0x74
    ff25a4000000        jmp qword ptr [rip + 0xa4]           # 6e
    c3                  ret                                  # 74

    57                  push rdi                             # 75: rax is the thread's block, where rdi is its emulator or its processor
    56                  push rsi
    52                  push rdx
    51                  push rcx
    4150                push r8
    4883ec08            sub rsp, 8
    8b3dab000000        mov edi, dword ptr [rip + 0xab]
    ff159d000000        call qword ptr [rip + 0x9d]
    4883c408            add rsp, 8
    4158                pop r8
    59                  pop rcx
    5a                  pop rdx
    5e                  pop rsi
    5f                  pop rdi
    4885c0              test rax, rax
    740f                je 0xa9
    483b7818            cmp rdi, qword ptr [rax + 0x18]
    7406                je 0xa6
    483b7810            cmp rdi, qword ptr [rax + 0x10]
    7504                jne 0xaa
    4885e4              test rsp, rsp                        # a6: not zero
    c3                  ret                                  # a9
    39c0                cmp eax, eax                         # aa: zero
    c3                  ret
"""
_CODE = bytes.fromhex("".join(line.split()[0] for line in _LISTING.splitlines() if line.strip()))
_DATA = 0x100
_NAMES = ("tlb_protect_code_x86_64", "tlb_unprotect_code_x86_64", "tb_invalidate_phys_page_fast_x86_64", "tlb_set_dirty_x86_64")
_STARTS = (0x00, 0x2C, 0x45, 0x56)
"""Where the code that comes before each of those begins."""
_PAGE = 4096
_WORD = ctypes.c_uint64


class _Data(ctypes.Structure):
    """What the machine code reads: the four functions, `tlb_reset_dirty`, `pthread_getspecific` and the key of a thread's block."""

    _fields_ = (("before", _WORD * 4), ("reset", _WORD), ("of_thread", _WORD), ("key", _WORD))


class _Block(ctypes.Structure):
    """One processor's: its bits, the address among the emulator's RAM that was written last, and how many pages got their first code."""

    _fields_ = (("bits", _WORD), ("written", _WORD), ("cpu", _WORD), ("emulator", _WORD), ("met", _WORD))


class _Mending:
    """The machine code in its page, and the entries that lead to it."""

    def __init__(self, slots: list[Any]):
        page, process, key = lasting_page(_CODE), ctypes.CDLL(None), ctypes.c_uint()
        if process.pthread_key_create(ctypes.byref(key), None):
            raise OSError("no key for a thread's word is left")
        self._slots, self._code = slots, ctypes.addressof(ctypes.c_char.from_buffer(page))
        self._data, self._key, self._set = _Data.from_buffer(page, _DATA), key, process.pthread_setspecific
        self._set.argtypes = [ctypes.c_uint, ctypes.c_void_p]
        for n, slot in enumerate(slots):
            self._data.before[n] = slot.value
        self._data.reset, self._data.of_thread = exported("tlb_reset_dirty_x86_64"), address_of(process.pthread_getspecific)
        self._data.key = key.value

    def begin(self) -> None:
        for slot, start in zip(self._slots, _STARTS, strict=True):
            slot.value = self._code + start

    def end(self) -> None:
        for n, slot in enumerate(self._slots):
            slot.value = self._data.before[n]

    def take(self, block: _Block | None) -> None:
        """What this thread's emulator does from now on is noted in `block`."""
        self._set(self._key, None if block is None else ctypes.addressof(block))


class CodePages:
    """The pages with code of the processor of `uc`, whose RAM is `size` bytes in the emulator's own count; with 0 none is noted."""

    def __init__(self, uc: Uc, size: int):
        self._mending = mend() if size else None
        private = emulator.find(uc) if self._mending else None
        if private is None:
            self._mending = None
            return
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._bits = mmap.mmap(-1, -(-size // _PAGE // 64) * 8 + 8, flags=flags)
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._bits))
        self._block = _Block(at, 0, private.cpu, private.handle, 0)

    def begin(self) -> None:
        """The processor is about to run on this thread."""
        if self._mending is not None:
            self._mending.take(self._block)

    def end(self) -> None:
        """It does no longer."""
        if self._mending is not None:
            self._mending.take(None)

    @property
    def met(self) -> int | None:
        """How often a page got its first code; None where that is not noted."""
        return int(self._block.met) if self._mending is not None else None


def mend() -> _Mending | None:
    """The mending, which is made once in a process; None where this build of the library, or this computer, is not as it has to be."""
    return _once.get()


def _mended() -> _Mending | None:
    if platform.machine() != "x86_64" or platform.system() != "Linux" or _runs_what_was_written(None):
        return None
    slots = entries(_NAMES)
    if slots is None or not exported("tlb_reset_dirty_x86_64"):
        return None
    try:
        mending = _Mending(slots)
    except OSError:
        return None
    mending.begin()
    if _runs_what_was_written(mending):
        return mending
    mending.end()
    return None


_once = Once(_mended)
_TABLES, _HERE, _ALIAS = 0x1000, 0x10000, 0x20000
_PROGRAM = b"".join(b"\xc6\x04\x25" + (_ALIAS + 0x101).to_bytes(4, "little") + bytes((n, 0xE8)) + (0x100 - 13 * n).to_bytes(4, "little")
                    for n in (1, 2, 3)) + b"\xf4"
"""Three times: mov byte ptr [alias + 0x101], n; call +0x100.  Then hlt."""


def _runs_what_was_written(mending: _Mending | None) -> bool:
    """Whether an emulator of its own runs code as it was written last by another address: mov al, n; ret."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    try:
        uc.mem_map(0, 0x40000)
        _lay_tables(uc)
        uc.mem_write(_HERE, _PROGRAM)
        uc.mem_write(_HERE + 0x100, b"\xb0\x00\xc3")
        private = emulator.find(uc)
        if private is None:
            return False
        bits = ctypes.create_string_buffer(16)
        block = _Block(ctypes.addressof(bits), 0, private.cpu, private.handle, 0)
        if mending is not None:
            mending.take(block)
        uc.reg_write(x86.UC_X86_REG_RSP, 0x30000)
        uc.emu_start(_HERE, 0x3F000)
        return bool(uc.reg_read(x86.UC_X86_REG_RAX) & 0xFF == 3)
    except UcError:
        return False
    finally:
        if mending is not None:
            mending.take(None)
        emulator.release(uc)


def _lay_tables(uc: Uc) -> None:
    """Addresses as they are in memory; the alias leads to the code, and is not executable."""
    entry = [0] * 512
    for n in range(64):
        entry[n] = n << 12 | 3
    entry[_ALIAS >> 12] = _HERE | 1 << 63 | 3
    for n, table in enumerate(([_TABLES + 0x1000 | 3], [_TABLES + 0x2000 | 3], [_TABLES + 0x3000 | 3], entry)):
        uc.mem_write(_TABLES + 0x1000 * n, b"".join(word.to_bytes(8, "little") for word in table))
    uc.msr_write(EFER, EFER_LME | EFER_LMA | EFER_NXE)
    uc.reg_write(x86.UC_X86_REG_CR4, 0x620)
    uc.reg_write(x86.UC_X86_REG_CR3, _TABLES)
    uc.reg_write(x86.UC_X86_REG_CR0, 0x80010011)
