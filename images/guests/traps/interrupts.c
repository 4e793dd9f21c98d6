/* Cases of interrupts. */

#include "traps.h"

/* An interrupt that waits: the PIT's one-shot has ended and IF is 0. */
void tick_waits(void)
{
	static const u8 words[][2] = { { 0x20, 0x11 }, { 0x21, 32 }, { 0x21, 4 }, { 0x21, 1 }, { 0x21, 0xff }, { 0x20, 0x0a },
				       { 0x43, 0x30 }, { 0x40, 100 }, { 0x40, 0 } };

	for (unsigned i = 0; i < sizeof(words) / sizeof(*words); i++)
		out(words[i][0], words[i][1]);
	while (!(in(0x20) & 1))
		;
	out(0x21, 0xfe);
}

void interrupts(void)
{
	static const char *const names[] = { "STI; NOP", "STI; HLT", "STI; MOV SS", "STI; NOP; CLI", "STI; STI", "STI; CLI", "POPF" };
	SNIPPET(sti_nop); SNIPPET(sti_hlt); SNIPPET(sti_ss); SNIPPET(sti_pop_ss); SNIPPET(sti_sti); SNIPPET(sti_cli); SNIPPET(sti_popf);
	char *const snippets[] = { s_sti_nop, s_sti_hlt, s_sti_ss, s_sti_pop_ss, s_sti_sti, s_sti_cli, s_sti_popf };

	for (unsigned i = 0; i < sizeof(names) / sizeof(*names) && !ring; i++) {
		tick_waits();
		returns = 1;
		go(names[i], snippets[i], 0, 0, 0);
	}
	tick_waits();
	returns = 1;
	RUN("an interrupt waits, IRETQ with IF", nops, 0, 0, IF);
	tick_waits();
	gate(IRQ0, CS, 0x8f, 1);
	returns = 1;
	RUN("interrupt by a trap gate with IST", nops, 0, 0, IF | DF);
	tick_waits();
	RUN("an interrupt waits, IF is 0", nops, 0, 0, 0);
	tick_waits();
	gate(IRQ0, CS, 0x0e, 0);
	RUN("interrupt, gate not present", nops, 0, 0, IF);
	out(0x20, 0x20);
	tick_waits();
	put_tss(4, PAGE(PROBE + 1));
	stack_override = ring ? 0 : PAGE(PROBE + 1);
	gate(PF, CS, 0x8e, 2);
	RUN("interrupt, stack absent", nops, 0, 0, IF);
	out(0x20, 0x20);
	tick_waits();
	returns = 1;
	RUN("interrupt and single step", nops, 0, 0, IF | TF);
}

/* In a loop without end, an interrupt comes that did not wait yet. */
void in_a_loop(void)
{
	static const u8 words[][2] = { { 0x43, 0x30 }, { 0x40, 0 }, { 0x40, 16 } };

	for (unsigned i = 0; i < sizeof(words) / sizeof(*words); i++)
		out(words[i][0], words[i][1]);
	out(0x21, 0xfe);
	RUN("an interrupt ends a loop", spin, 0, 0, IF);
}
