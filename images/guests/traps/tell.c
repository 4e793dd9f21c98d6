/* What is told, on the serial port. */

#include "traps.h"

const char *start;

void put(char c)
{
	while (!(in(0x3fd) & 0x20))
		;
	out(0x3f8, c);
}

void text(const char *s)
{
	for (; *s; s++)
		put(*s);
}

static void hex(u64 value)
{
	int shift = 60;

	text("0x");
	while (shift && !(value >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		put("0123456789abcdef"[value >> shift & 15]);
}

void word(const char *name, u64 value)
{
	put(' ');
	text(name);
	put('=');
	hex(value);
}

int trap(const struct frame *f, u64 ss, u64 cs)
{
	if (f->vector == IRQ0)
		out(0x20, 0x20);
	text("  vector ");
	hex(f->vector);
	word("error", f->error);
	word("rip", f->rip - base() - (start - user_start));
	word("cs", f->cs);
	word("rflags", f->rflags);
	word("rsp", f->rsp);
	word("ss", f->ss);
	word("cr2", cr2());
	if (f->vector == 1)
		word("dr6", dr6() & 0xe00f);
	text(" |");
	word("rax", f->rax);
	word("rcx", f->vector == END ? f->rcx : 0);
	word("new-flags", f->flags);
	word("frame", (u64)&f->error);
	word("new-ss", ss);
	word("new-cs", cs);
	put('\n');
	set_dr6(0xffff0ff0);
	return f->vector != END && returns && returns--;
}

void syscall_told(void)
{
	text("  syscall");
	word("rsp", syscall_state[0]);
	word("flags", syscall_state[1]);
	word("rcx", syscall_state[2] - base() - (start - user_start));
	word("r11", syscall_state[3]);
	word("cs", syscall_state[4]);
	word("ss", syscall_state[5]);
	word("entry", syscall_state[6] & 0xffffffff);
	put('\n');
}
