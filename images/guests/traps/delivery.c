/* Cases of the way to a handler: single steps, RFLAGS, gates, stacks. */

#include "traps.h"

void stepping(void)
{
	returns = 4;
	RUN("single step", nops, 0, 0, TF);
	RUN("single step, one", nops, 0, 0, TF);
	returns = 8;
	RUN("POPF sets and clears TF", popf, 0x102, 2, 0);
	returns = 5;
	RUN("single step over MOV SS", step_ss, 0, 0, TF);
	returns = 5;
	RUN("single step over INT3", int3, 0, 0, TF);
	returns = 5;
	RUN("single step over INT 0x80", int80, 0, 0, TF);
	returns = 3;
	RUN("single step into UD2", ud2, 0, 0, TF);
	returns = 8;
	RUN("single step of REP STOSB", step_string, PAGE(ring ? USER_STACK : LOW), 0, TF);
}

void flags(void)
{
	RUN("flags of ADD", flags, 0, 0, 0);
	RUN("flags of SUB, DF", flags2, 0, 0, 0);
	RUN("flags of SHL", flags3, 0, 0, 0);
	RUN("UD2 with DF, AC, IF", ud2, 0, 0, IF | DF | AC);
	RUN("UD2 with NT", ud2, 0, 0, NT);
	RUN("UD2 with RF, IOPL 3, ID", ud2, 0, 0, 0x213000);
	gate(UD, CS, 0x8f, 0);
	RUN("trap gate", ud2, 0, 0, IF | AC | DF | NT);
	gate(0x80, CS, 0xef, 0);
	returns = 1;
	RUN("INT 0x80, trap gate, IF", int80, 0, 0, IF);
	returns = 1;
	RUN("INT 0x80, IF", int80, 0, 0, IF | 0x8d5);
}

void gates(void)
{
	gate(UD, CS, 0x0e, 0);
	RUN("gate not present", ud2, 0, 0, 0);
	gate(0x80, CS, 0x6e, 0);
	RUN("INT 0x80, gate not present", int80, 0, 0, 0);
	gate(UD, CS, 0x8c, 0);
	RUN("gate of a call", ud2, 0, 0, 0);
	gate(0x80, CS, 0xe5, 0);
	RUN("INT 0x80, task gate", int80, 0, 0, 0);
	gate(UD, 0, 0x8e, 0);
	RUN("gate to null", ud2, 0, 0, 0);
	gate(UD, 0x1000, 0x8e, 0);
	RUN("gate beyond the GDT", ud2, 0, 0, 0);
	gate(0x80, 0x1003, 0xee, 0);
	RUN("INT 0x80, gate beyond the GDT", int80, 0, 0, 0);
	gate(UD, DS, 0x8e, 0);
	RUN("gate to data", ud2, 0, 0, 0);
	gate(UD, ABSENT_CODE, 0x8e, 0);
	RUN("gate to code not present", ud2, 0, 0, 0);
	gate(UD, CODE32, 0x8e, 0);
	RUN("gate to 32-bit code", ud2, 0, 0, 0);
	gate(UD, TSS, 0x8e, 0);
	RUN("gate to a TSS", ud2, 0, 0, 0);
	gate(UD, 0x14, 0x8e, 0);
	RUN("gate to the LDT", ud2, 0, 0, 0);
	gate(UD, CS | 3, 0x8e, 0);
	RUN("gate with RPL 3", ud2, 0, 0, 0);
	if (!ring) {
		gate(UD, USER_CS, 0x8e, 0);
		RUN("gate to an outer ring", ud2, 0, 0, 0);
		gate(UD, CONFORMING, 0x8e, 0);
		RUN("gate to conforming code", ud2, 0, 0, 0);
	}
	load_tables(sizeof(gdt) - 1, 16 * 0x80 - 1, sizeof(tss) - 1);
	RUN("INT 0x80 beyond the IDT", int80, 0, 0, 0);
	load_tables(sizeof(gdt) - 1, 16 * 0x80 + 14, sizeof(tss) - 1);
	RUN("INT 0x80, half a gate", int80, 0, 0, 0);
	gate(UD, CS, 0x0e, 0);
	gate(11, CS, 0x0e, 0);
	RUN("neither gate present", ud2, 0, 0, 0);
	gate(GP, CS, 0x0e, 0);
	RUN("#GP, gate not present", read, NONCANONICAL, 0, 0);
	gate(PF, CS, 0x0e, 0);
	RUN("#PF, gate not present", read, PAGE(PROBE), 0, 0);
	set_gate(UD, NONCANONICAL, CS, 0x8e, 0);
	RUN("handler non-canonical", ud2, 0, 0, 0);
	set_gate(UD, PAGE(PROBE), CS, 0x8e, 0);
	RUN("handler absent", ud2, 0, 0, 0);
}

void stacks(void)
{
	gate(UD, CS, 0x8e, 1);
	RUN("IST", ud2, 0, 0, 0);
	gate(UD, CS, 0x8e, 1);
	put_tss(0x24, PAGE(IST_STACK + 1) - 0x103);
	RUN("IST misaligned", ud2, 0, 0, 0);
	gate(PF, CS, 0x8e, 2);
	RUN("IST with error code", read, PAGE(PROBE), 0, 0);
	gate(UD, CS, 0x8e, 1);
	put_tss(0x24, NONCANONICAL + 0x1000);
	RUN("IST non-canonical", ud2, 0, 0, 0);
	gate(UD, CS, 0x8e, 1);
	put_tss(0x24, PAGE(PROBE + 1));
	RUN("IST absent", ud2, 0, 0, 0);
	gate(UD, CS, 0x8e, 7);
	put_tss(0x54, 0);
	RUN("IST 0", ud2, 0, 0, 0);
	gate(UD, CS, 0x8e, 1);
	load_tables(sizeof(gdt) - 1, sizeof(idt) - 1, 0x27);
	RUN("IST beyond the TSS", ud2, 0, 0, 0);
	stack_override = (ring ? PAGE(USER_STACK + 1) : PAGE(HIGH + 1)) - 0x7f3;
	put_tss(4, PAGE(HIGH + 1) - 0x7f1);
	RUN("stacks misaligned", ud2, 0, 0, 0);
	stack_override = ring ? PAGE(USER_STACK + 1) - 3 : PAGE(HIGH + 1) - 0x7f9;
	put_tss(4, PAGE(HIGH + 1) - 9);
	RUN("stacks misaligned, error code", read, PAGE(PROBE), 0, 0);
	put_tss(4, PAGE(HIGH) + 16);
	stack_override = ring ? 0 : PAGE(HIGH) + 16;
	RUN("frame across pages", ud2, 0, 0, 0);
	put_tss(4, PAGE(HIGH) + 32);
	stack_override = ring ? 0 : PAGE(HIGH) + 32;
	RUN("frame across pages, error code", read, PAGE(PROBE), 0, 0);
	put_tss(4, PAGE(LOW) + 16);
	stack_override = ring ? 0 : PAGE(LOW) + 16;
	gate(PF, CS, 0x8e, 2);
	RUN("frame into an absent page, #PF on its IST", ud2, 0, 0, 0);
	put_tss(4, PAGE(LOW) + 16);
	stack_override = ring ? 0 : PAGE(LOW) + 16;
	RUN("frame into an absent page", ud2, 0, 0, 0);
	put_tss(4, PAGE(PROBE + 1));
	stack_override = ring ? 0 : PAGE(PROBE + 1);
	RUN("stack absent", ud2, 0, 0, 0);
	put_tss(4, PAGE(PROBE + 1));
	stack_override = ring ? 0 : PAGE(PROBE + 1);
	RUN("stack absent, #GP", read, NONCANONICAL, 0, 0);
	put_tss(4, PAGE(PROBE + 1));
	stack_override = ring ? 0 : PAGE(PROBE + 1);
	gate(PF, CS, 0x8e, 2);
	RUN("stack absent, #GP, #PF on its IST", read, NONCANONICAL, 0, 0);
	put_tss(4, PAGE(PROBE + 1));
	stack_override = ring ? 0 : PAGE(PROBE + 1);
	gate(PF, CS, 0x8e, 2);
	map(PROBE, P);
	RUN("stack read-only", int80, 0, 0, 0);
	put_tss(4, PAGE(PROBE + 1));
	stack_override = ring ? 0 : PAGE(PROBE + 1);
	gate(PF, CS, 0x8e, 2);
	map(PROBE, P | W | 1ul << 45);
	RUN("stack of a reserved bit", int80, 0, 0, 0);
	put_tss(4, NONCANONICAL + 0x1000);
	stack_override = ring ? 0 : NONCANONICAL + 0x1000;
	gate(12, CS, 0x8e, 2);
	RUN("stack non-canonical", int80, 0, 0, 0);
	stack_override = ring ? NONCANONICAL + 3 : 0;
	RUN("user's stack non-canonical", int80, 0, 0, 0);
}
