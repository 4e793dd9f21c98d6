/* Cases of exceptions: those of an instruction alone, of protection, of paging. */

#include "traps.h"

void plain(void)
{
	RUN("nothing", nothing, 0, 0, 0);
	RUN("divide by zero", divide, 0, 0, 0);
	RUN("divide, overflow", overflow, 0, 0, 0);
	returns = 1;
	RUN("INT3", int3, 0, 0, 0);
	gate(3, CS, 0x8e, 0);
	RUN("INT3, gate of DPL 0", int3, 0, 0, 0);
	returns = 1;
	RUN("INT 0x80", int80, 0, 0, 0);
	gate(0x80, CS, 0x8e, 0);
	RUN("INT 0x80, gate of DPL 0", int80, 0, 0, 0);
	gate(14, CS, 0xee, 0);
	RUN("INT 14 pushes no error code", int14, 0, 0, 0);
	if (ring)
		RUN("INT 13, gate of DPL 0", int13, 0, 0, 0);
	RUN("UD2", ud2, 0, 0, 0);
	RUN("LOCK of registers", lock_add, 0, 0, 0);
	RUN("LOCK NOP", lock_nop, 0, 0, 0);
	RUN("PUSH ES", push_es, 0, 0, 0);
	RUN("INTO", into, 0, 0, 0);
	RUN("JMP far immediate", far_immediate, 0, 0, 0);
	set_cr0(cr0() | 8);
	RUN("x87, CR0.TS", fldz, 0, 0, 0);
	set_cr0(cr0() | 8);
	RUN("SSE, CR0.TS", sse, 0, 0, 0);
	set_cr0(cr0() | 8);
	RUN("FWAIT, CR0.TS and MP", fwait, 0, 0, 0);
	set_cr0(cr0() | 4);
	RUN("x87, CR0.EM", fldz, 0, 0, 0);
	set_cr0(cr0() | 4);
	RUN("SSE, CR0.EM", sse, 0, 0, 0);
	set_cr4(cr4() & ~0x200ul);
	RUN("SSE, no CR4.OSFXSR", sse, 0, 0, 0);
	RUN("x87 divide by zero", fpu_divide, 0, 0, 0);
	RUN("SSE divide by zero", sse_divide, 0, 0, 0);
}

void protection(void)
{
	RUN("DS beyond the GDT", load_ds, 0x1000, 0, 0);
	RUN("DS beyond the GDT, RPL 3", load_ds, 0x1003, 0, 0);
	RUN("DS of an LDT that is not there", load_ds, 0x1c, 0, 0);
	RUN("DS not present", load_ds, ABSENT_DATA | ring, 0, 0);
	RUN("DS of a TSS", load_ds, TSS, 0, 0);
	RUN("DS null", load_ds, 3, 0, 0);
	RUN("FS of DPL 0", load_fs, DS | 3, 0, 0);
	RUN("SS not present", load_ss, ABSENT_DATA | ring, 0, 0);
	RUN("SS null", load_ss, 0, 0, 0);
	RUN("SS of code", load_ss, ring ? USER_CS : CS, 0, 0);
	RUN("SS of another RPL", load_ss, ring ? USER_DS & ~3 : DS | 3, 0, 0);
	RUN("read non-canonical", read, NONCANONICAL, 0, 0);
	RUN("write non-canonical", write, -NONCANONICAL - 8, 0, 0);
	RUN("read non-canonical by RBP", read_by_rbp, NONCANONICAL, 0, 0);
	RUN("push non-canonical", push, NONCANONICAL + 0x1000, 0, 0);
	RUN("jump non-canonical", jump, NONCANONICAL, 0, 0);
	RUN("call non-canonical", call_it, NONCANONICAL, 0, 0);
	RUN("MOVAPS misaligned", movaps, PAGE(ring ? USER_STACK : HIGH) + 8, 0, 0);
	if (ring) {
		RUN("CLI", cli, 0, 0, 0);
		RUN("STI", sti, 0, 0, 0);
		RUN("HLT", hlt, 0, 0, 0);
		RUN("IN without permission", in80, 0, 0, 0);
		RUN("LGDT", lgdt, PAGE(USER_STACK), 0, 0);
		RUN("RDMSR", rdmsr, 0, 0, 0);
		RUN("MOV from CR3", move_cr3, 0, 0, 0);
		RUN("SYSRET", sysret, 0, 0, 0);
		set_cr0(cr0() | 0x40000);
		RUN("misaligned, AM and AC", read, PAGE(USER_STACK) + 1, 0, AC);
	}
}

void paging(void)
{
	u64 user = ring ? U : 0;

	RUN("read absent", read, PAGE(PROBE) + 0x123, 0, 0);
	RUN("write absent", write, PAGE(PROBE) + 0x123, 0, 0);
	RUN("INC absent", change, PAGE(PROBE) + 0x120, 0, 0);
	RUN("fetch absent", jump, PAGE(PROBE) + 0x123, 0, 0);
	RUN("call absent", call_it, PAGE(PROBE) + 0x123, 0, 0);
	RUN("read where no table is", read, 0x7f0000000000, 0, 0);
	RUN("write in the upper half", write, 0xffff800000000000, 0, 0);
	map(PROBE, P | user);
	RUN("read read-only", read, PAGE(PROBE), 0, 0);
	map(PROBE, P | user);
	RUN("write read-only", write, PAGE(PROBE), 0, 0);
	map(PROBE, P | user);
	RUN("INC read-only", change, PAGE(PROBE), 0, 0);
	map(PROBE, P | user);
	set_cr0(cr0() & ~0x10000ul);
	RUN("write read-only, no CR0.WP", write, PAGE(PROBE), 0, 0);
	map(PROBE, P | W | user | NX);
	RUN("fetch no-execute", jump, PAGE(PROBE), 0, 0);
	map(PROBE, P | W | U);
	RUN("read a user's page", read, PAGE(PROBE), 0, 0);
	map(PROBE, P | W | U);
	RUN("write a user's page", write, PAGE(PROBE), 0, 0);
	map(PROBE, P | W | U);
	RUN("read a user's page, AC", read, PAGE(PROBE), 0, AC);
	RUN("jump to a user's page", jump, PAGE(USER_CODE), 0, 0);
	map(PROBE, P | W);
	RUN("read a supervisor's page", read, PAGE(PROBE), 0, 0);
	map(PROBE, P | W);
	RUN("write a supervisor's page", write, PAGE(PROBE), 0, 0);
	map(PROBE, P | W);
	RUN("fetch a supervisor's page", jump, PAGE(PROBE), 0, 0);
	map(PROBE, P | W | user);
	for (unsigned i = 4080; i < 4096; i++)
		pages[PROBE][i] = 0x90;
	RUN("NOPs into an absent page", jump, PAGE(PROBE + 1) - 16, 0, 0);
	map(PROBE, P | W | user | 1ul << 45);
	RUN("read, reserved bit", read, PAGE(PROBE), 0, 0);
	map(PROBE, P | W | user | 1ul << 45);
	RUN("write, reserved bit", write, PAGE(PROBE), 0, 0);
	map(PROBE, P | W | user);
	RUN("read across into an absent page", read, PAGE(PROBE + 1) - 4, 0, 0);
	map(PROBE, P | W | user);
	RUN("write across into an absent page", write, PAGE(PROBE + 1) - 4, 0, 0);
	map(PROBE, P | W | user);
	RUN("REP MOVSB into an absent page", copy, PAGE(PROBE + 1) - 2, base(), 0);
	RUN("push below the stack", push, PAGE(PROBE) + 8, 0, 0);
}
