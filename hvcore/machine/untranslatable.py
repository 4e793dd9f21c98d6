"""What the emulator aborts this process for, and a processor does not.

- LOCK before a BT, BTS, BTR or BTC of a register, which is a #UD.  The emulator takes it to have a memory operand, whose address nobody has
  computed: it aborts, or, where an instruction before in the same block has left an address behind, accesses memory there.  No hook comes
  before it translates.
- An inner stack that is wanted where the task register holds no present TSS.  LTR of a null selector, which a processor refuses, makes it
  so here, and a VMCB that says so.  A guest is shut down then: #VMEXIT(SHUTDOWN).

`mend` puts a few bytes of machine code, for x86-64 Linux, behind entries of the table by which the library calls its own functions: the
loop over a block's instructions, the fetch of a byte of code, and the end of the process.  Where it fetches the opcode of such an
instruction, it reads that of LSS instead, which for a register is as long and a #UD, by the emulator's own way.  What it fetches for
anything else, and everything after translation, is as it was.  The entries are the process's: every emulator in it has them from then on.
"""

import ctypes
import platform
import re
from typing import Any

from unicorn import UC_ARCH_X86, UC_HOOK_INSN_INVALID, UC_MODE_64, Uc, UcError
from unicorn.x86_const import UC_X86_REG_RIP

from .emulator import layout, release
from .library import Once, address_of, entries, exported, lasting_page

__all__ = ["mend"]

_LISTING = """
    488d3d79010000      lea rdi, [rip + 0x179]               # loop(operations, ...): with our operations instead
    ff25b3010000        jmp qword ptr [rip + 0x1b3]

    57                  push rdi                             # translate(block, ...): the thread keeps where this instruction begins
    56                  push rsi
    57                  push rdi
    488b7710            mov rsi, qword ptr [rdi + 0x10]
    8b3de6010000        mov edi, dword ptr [rip + 0x1e6]
    ff15c0010000        call qword ptr [rip + 0x1c0]
    5f                  pop rdi
    5e                  pop rsi
    5f                  pop rdi
    ff259f010000        jmp qword ptr [rip + 0x19f]

    55                  push rbp                             # byte(processor, address)
    53                  push rbx
    4154                push r12
    4155                push r13
    6a00                push 0                               # becomes F0 where LOCK is seen
    4889fd              mov rbp, rdi
    4889f3              mov rbx, rsi
    ff1593010000        call qword ptr [rip + 0x193]
    4189c4              mov r12d, eax
    24e7                and al, 0xe7
    3ca3                cmp al, 0xa3                         # A3, AB, B3, BB, BA
    7414                je 0x5a
    4181fcba000000      cmp r12d, 0xba
    740b                je 0x5a
    4489e0              mov eax, r12d                        # 4f: done
    59                  pop rcx
    415d                pop r13
    415c                pop r12
    5b                  pop rbx
    5d                  pop rbp
    c3                  ret
    8b3da0010000        mov edi, dword ptr [rip + 0x1a0]     # 5a: where does this instruction begin?
    ff1582010000        call qword ptr [rip + 0x182]
    4989c5              mov r13, rax
    488d4bfe            lea rcx, [rbx - 2]                   # it has 15 bytes at most, with ModRM and BA's immediate byte
    4829c1              sub rcx, rax
    4181fcba000000      cmp r12d, 0xba
    0f94c0              sete al
    0fb6c0              movzx eax, al
    4801c1              add rcx, rax
    4883f90b            cmp rcx, 0xb
    77c9                ja 0x4f
    4889ef              mov rdi, rbp                         # 86: prefixes, LOCK among them, and 0F before the opcode?
    4c89ee              mov rsi, r13
    ff153e010000        call qword ptr [rip + 0x13e]
    49ffc5              inc r13
    4939dd              cmp r13, rbx
    7412                je 0xac
    0fa30577010000      bt dword ptr [rip + 0x177], eax
    73ac                jae 0x4f
    3cf0                cmp al, 0xf0
    75df                jne 0x86
    880424              mov byte ptr [rsp], al
    ebda                jmp 0x86
    3c0f                cmp al, 0xf                          # ac
    759f                jne 0x4f
    803c24f0            cmp byte ptr [rsp], 0xf0
    7599                jne 0x4f
    4889ef              mov rdi, rbp                         # a register?
    488d7301            lea rsi, [rbx + 1]
    ff150d010000        call qword ptr [rip + 0x10d]
    3cc0                cmp al, 0xc0
    7288                jb 0x4f
    4181fcba000000      cmp r12d, 0xba
    750d                jne 0xdd
    4889ef              mov rdi, rbp                         # BA's immediate byte: a page fault there comes first
    488d7302            lea rsi, [rbx + 2]
    ff15f3000000        call qword ptr [rip + 0xf3]
    41bcb2000000        mov r12d, 0xb2                       # dd
    f048ff050d010000    lock inc qword ptr [rip + 0x10d]
    e95fffffff          jmp 0x4f

    488b06              mov rax, qword ptr [rsi]             # abort(processor, message, ...): invalid tss, or invalid tss type?
    483b0516010000      cmp rax, qword ptr [rip + 0x116]
    7532                jne 0x12e
    8b4608              mov eax, dword ptr [rsi + 8]
    25ffffff00          and eax, 0xffffff
    3d74737300          cmp eax, 0x737374
    7523                jne 0x12e
    488b05f6000000      mov rax, qword ptr [rip + 0xf6]      # a guest's?
    4801f8              add rax, rdi
    f680b200000020      test byte ptr [rax + 0xb2], 0x20
    7410                je 0x12e
    4889c7              mov rdi, rax                         # exit(state, SHUTDOWN, 0, 0)
    6a7f                push 0x7f
    5e                  pop rsi
    31d2                xor edx, edx
    31c9                xor ecx, ecx
    ff25c2000000        jmp qword ptr [rip + 0xc2]
    ff25a4000000        jmp qword ptr [rip + 0xa4]           # 12e
"""
_CODE = bytes.fromhex("".join(line.split()[0] for line in _LISTING.splitlines() if line.strip()))
_LOOP, _TRANSLATE, _BYTE, _ABORT, _DATA = 0, 0x0D, 0x29, 0xF0, 0x180
"""Where they begin in the page, and where the data does."""
_NAMES = ("translator_loop_x86_64", "cpu_ldub_code_x86_64", "cpu_abort_x86_64")
_PREFIXES = (0x26, 0x2E, 0x36, 0x3E, *range(0x40, 0x50), 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3)
_WORD = ctypes.c_uint64


class _Data(ctypes.Structure):
    """What the machine code reads: operations of the translator (the fifth is for one instruction), addresses, the thread's key, where the
    state is from the processor, the beginning of a message, a bit for each byte that is a prefix.  `met` is how many such instructions it
    has met."""

    _fields_ = (("operations", _WORD * 8), ("loop", _WORD), ("translate", _WORD), ("byte", _WORD), ("abort", _WORD), ("keep", _WORD),
                ("kept", _WORD), ("exit", _WORD), ("met", _WORD), ("key", _WORD), ("state", _WORD), ("message", ctypes.c_char * 8),
                ("prefixes", ctypes.c_uint8 * 32))


class _Mending:
    """The machine code in its page, and the entries that lead to it."""

    def __init__(self, slots: list[Any], operations: int):
        page = lasting_page(_CODE)
        self.code, self.data = ctypes.addressof(ctypes.c_char.from_buffer(page)), _Data.from_buffer(page, _DATA)
        self.slots, self._before = slots, [slot.value for slot in slots]
        self._fill(operations)

    def _fill(self, operations: int) -> None:
        data, process, key, where = self.data, ctypes.CDLL(None), ctypes.c_uint(), layout()
        if process.pthread_key_create(ctypes.byref(key), None):
            raise OSError("no key for a thread's word is left")
        ctypes.memmove(data.operations, operations, ctypes.sizeof(data.operations))
        data.translate, data.operations[4] = data.operations[4], self.code + _TRANSLATE
        data.loop, data.byte, data.abort = self._before
        data.keep, data.kept = address_of(process.pthread_setspecific), address_of(process.pthread_getspecific)
        data.exit, data.key, data.message = exported("cpu_vmexit_x86_64"), key.value, b"invalid "
        data.state = where.env if where else 0
        for prefix in _PREFIXES:
            data.prefixes[prefix // 8] |= 1 << prefix % 8

    def begin(self) -> None:
        self.slots[0].value, self.slots[1].value = self.code + _LOOP, self.code + _BYTE
        if self.data.state and self.data.exit:
            self.slots[2].value = self.code + _ABORT

    def end(self) -> None:
        for slot, before in zip(self.slots, self._before, strict=True):
            slot.value = before


def mend() -> bool:
    """From now on none of that ends this process, in any of its emulators; again and again does no harm.

    False where this build of the library, or this computer, is not as it has to be: then nothing is changed.
    """
    return _once.get() is not None


def _mended() -> _Mending | None:
    if platform.machine() != "x86_64" or platform.system() != "Linux" or not _told(_LSS):
        return None
    slots, operations = entries(_NAMES), _operations()
    if slots is None or operations is None:
        return None
    try:
        mending = _Mending(slots, operations)
    except OSError:
        return None
    mending.begin()
    if _fits(mending):
        return mending
    mending.end()
    return None


_once = Once(_mended)


def _operations() -> int | None:
    """The address of the translator's table of operations, which a function hands to the loop: lea rdi, [rip + offset]; call."""
    function = exported("gen_intermediate_code_x86_64")
    found = re.search(rb"\x48\x8d\x3d(....)\xe8", ctypes.string_at(function, 96) if function else b"", re.DOTALL)
    return function + found.end(1) + int.from_bytes(found[1], "little", signed=True) if found else None


_LSS, _NO_BIT, _IN_MEMORY, _BIT = "f00fb2c0", "f00fbac005", "f00fba2c2505000000 05", "f00fabc0"
"""LSS of a register and group BA's operation 0, which no emulator takes; LOCK BTS in memory; what is to be mended."""


def _fits(mending: _Mending) -> bool:
    """Whether it meets what it should, and nothing else, and the right instruction is told each time; what would abort comes last."""
    met = mending.data.met
    return (_told(_LSS) and mending.data.met == met and not _told(_IN_MEMORY) and mending.data.met == met
            and _told(_NO_BIT) and mending.data.met == met + 1 and _told(_BIT) and mending.data.met == met + 2)


def _told(code: str) -> bool:
    """Whether an emulator of its own tells an invalid instruction, in the right place."""
    uc, seen = Uc(UC_ARCH_X86, UC_MODE_64), []
    uc.hook_add(UC_HOOK_INSN_INVALID, lambda *_: seen.append(uc.reg_read(UC_X86_REG_RIP)))
    uc.mem_map(0, 0x1000)
    uc.mem_write(0x10, b"\x90" + bytes.fromhex(code) + b"\xf4")
    try:
        uc.emu_start(0x10, 0x1000)
    except UcError:
        pass
    finally:
        release(uc)
    return seen == [0x11]
