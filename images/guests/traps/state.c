/* Descriptor tables, stacks and pages as each case finds them, and the way into one. */

#include "traps.h"

struct gate idt[256];
u64 gdt[GDT_WORDS];
u8 tss[0x68] __attribute__((aligned(16)));
u64 window_pd[512] __attribute__((aligned(4096))), window[512] __attribute__((aligned(4096)));
u8 pages[48][4096] __attribute__((aligned(4096)));
unsigned ring, returns;
u64 stack_override, feature_bits, code32;

u64 base(void) { return ring ? PAGE(USER_CODE) : (u64)user_start; }

void mask_all(void) { out(0x21, 0xff); }

void set_gate(unsigned vector, u64 to, u16 selector, u8 type, u8 ist)
{
	idt[vector] = (struct gate){ to, selector, ist, type, to >> 16, to >> 32, 0 };
}

static u64 stub(unsigned vector) { return (u64)trap_gates + 16 * vector; }
void gate(unsigned vector, u16 selector, u8 type, u8 ist) { set_gate(vector, stub(vector), selector, type, ist); }

/* A page of the window, in which INT 0x21 lies first. */
void map(unsigned page, u64 bits)
{
	pages[page][0] = 0xcd;
	pages[page][1] = END;
	window[page] = (u64)pages[page] | bits;
	flush();
}

void put_tss(unsigned at, u64 value)
{
	*(u64 __attribute__((may_alias, aligned(1))) *)(tss + at) = value;
}

void load_tables(u16 gdt_limit, u16 idt_limit, u64 tss_limit)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) gdtr = { gdt_limit, (u64)gdt }, idtr = { idt_limit, (u64)idt };
	u64 at = (u64)tss;

	gdt[TSS / 8] = tss_limit | (at & 0xffffff) << 16 | 0x89ul << 40 | (at >> 24 & 0xff) << 56;
	gdt[TSS / 8 + 1] = at >> 32;
	ASM("lgdt %0; lidt %1" : : "m"(gdtr), "m"(idtr));
	ASM("lldt %w0" : : "r"(0));
	if (gdt_limit >= TSS + 15)
		ASM("ltr %w0" : : "r"(TSS));
}

/* Everything as each test finds it. */
void fresh(void)
{
	static const u64 descriptors[] = { 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff,
					   0x00affb000000ffff, 0, 0, 0x00cf9b000000ffff, 0x00cf73000000ffff, 0x00af1b000000ffff,
					   0x00af9f000000ffff };

	for (unsigned i = 0; i < GDT_WORDS; i++)
		gdt[i] = descriptors[i];
	for (unsigned v = 0; v < 256; v++)
		gate(v, CS, v == 3 || v == END || v == 0x80 ? 0xee : 0x8e, v == DOUBLE_FAULT ? 3 : 0);
	for (unsigned i = 0; i < sizeof(tss); i++)
		tss[i] = 0;
	put_tss(4, PAGE(HIGH + 1));
	put_tss(0x24, PAGE(IST_STACK + 1));
	put_tss(0x2c, PAGE(IST_STACK + 1) - 0x400);
	put_tss(0x34, PAGE(DF_STACK + 1));
	*(u16 *)(tss + 0x66) = sizeof(tss);
	for (unsigned i = 0; i < 512; i++)
		window[i] = 0;
	for (u64 i = 0; user_start + 4096 * i < user_end; i++)
		window[USER_CODE + i] = ((u64)user_start + 4096 * i) | P | U;
	window[USER_STACK] = (u64)pages[USER_STACK] | P | W | U | NX;
	window[LOW] = (u64)pages[LOW] | P | W | NX;
	window[HIGH] = (u64)pages[HIGH] | P | W | NX;
	window[DF_STACK] = (u64)pages[DF_STACK] | P | W | NX;
	window[IST_STACK] = (u64)pages[IST_STACK] | P | W | NX;
	set_cr0(0x80010033);
	set_cr4(0x620 | feature_bits);
	flush();
	set_cr2(0);
	load_tables(sizeof(gdt) - 1, sizeof(idt) - 1, sizeof(tss) - 1);
	wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x801);
	wrmsr(0xc0000081, (u64)CS << 32 | 0x20ul << 48);
	wrmsr(0xc0000082, (u64)syscall_entry);
	wrmsr(0xc0000083, (u64)syscall_entry32);
	wrmsr(0xc0000084, 0x700);
	stack_override = returns = 0;
}

void go(const char *name, char *snippet, u64 rax, u64 rdx, u64 flags)
{
	u64 rsp = stack_override ? stack_override : ring ? PAGE(USER_STACK + 1) : PAGE(HIGH + 1) - 0x800;
	u64 frame[5] = { base() + (snippet - user_start), code32 ? USER_CS32 : ring ? USER_CS : CS, flags | 2, rsp, ring ? USER_DS : DS };

	start = snippet;
	text(name);
	text(code32 ? ", 32-bit" : "");
	text(ring ? ", ring 3\n" : ", ring 0\n");
	enter_snippet(frame, rax, rdx);
	mask_all();
	fresh();
}
