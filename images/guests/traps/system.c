/* Cases of IRETQ, SYSCALL, and of code of 32 bits. */

#include "traps.h"

void returning(void)
{
	u64 page = ring ? USER_STACK : LOW, code = base() + 0, cs = ring ? USER_CS : CS, ss = ring ? USER_DS : DS;
	u64 *words = (u64 *)pages[page];
	static const struct {
		const char *name;
		u64 rip, cs, ss;
	} bad[] = {
		{ "IRETQ to where it is", 0, 0, 0 }, { "IRETQ to non-canonical", NONCANONICAL, 0, 0 }, { "IRETQ to null CS", 0, 1, 0 },
		{ "IRETQ to data", 0, DS, 0 }, { "IRETQ to CS beyond the GDT", 0, 0x1000, 0 }, { "IRETQ to code not present", 0, ABSENT_CODE, 0 },
		{ "IRETQ to the wrong SS", 0, 0, 0x33 }, { "IRETQ to SS not present", 0, 0, ABSENT_DATA },
	};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		words[0] = bad[i].rip ? bad[i].rip : code;
		words[1] = bad[i].cs > 1 ? bad[i].cs | ring : bad[i].cs ? 0 : cs;
		words[2] = 2;
		words[3] = PAGE(page) + 0x800;
		words[4] = bad[i].ss ? bad[i].ss | ring : ss;
		RUN(bad[i].name, iret, PAGE(page), 0, 0);
	}
	RUN("IRETQ from an absent stack", iret, PAGE(PROBE), 0, 0);
	words[0] = code;
	words[1] = cs;
	words[4] = ss;
	RUN("IRETQ with NT", iret, PAGE(page), 0, NT);
}

void system_calls(void)
{
	RUN("SYSCALL", syscall, 0, 0, 0);
	RUN("SYSCALL with IF, AC", syscall, 0, 0, IF | AC);
	wrmsr(0xc0000084, 0x40600);
	RUN("SYSCALL, SFMASK of AC, IF, DF", syscall, 0, 0, IF | AC);
	wrmsr(0xc0000084, 0);
	RUN("SYSCALL, no SFMASK", syscall, 0, 0, IF | NT);
	returns = 3;
	RUN("SYSCALL, single step with SFMASK of TF", syscall, 0, 0, TF);
	wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ul);
	RUN("SYSCALL without EFER.SCE", syscall, 0, 0, 0);
	wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ul);
	RUN("SYSRET without EFER.SCE", sysret, 0, 0, 0);
}

/* Code of 32 bits in ring 3, which every trap leaves for 64 bits. */
void compatible(void)
{
	code32 = 1;
	returns = 1;
	RUN("INT 0x80", int80, 0, 0, IF);
	gate(0x80, CS, 0x8e, 0);
	RUN("INT 0x80, gate of DPL 0", int80, 0, 0, 0);
	returns = 1;
	RUN("INT3", int3, 0, 0, 0);
	RUN("UD2", ud2, 0, 0, 0);
	RUN("divide by zero", divide, 0, 0, 0);
	RUN("read absent", read32, PAGE(PROBE) + 0x123, 0, 0);
	gate(UD, CS, 0x8e, 1);
	RUN("IST", ud2, 0, 0, 0);
	returns = 3;
	RUN("single step", nops, 0, 0, TF);
	RUN("SYSCALL", syscall, 0, 0, IF);
	wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ul);
	RUN("SYSCALL without EFER.SCE", syscall, 0, 0, 0);
	tick_waits();
	returns = 1;
	RUN("an interrupt waits, IRETQ with IF", nops, 0, 0, IF);
	code32 = 0;
}
