/* What the processor does with exceptions, INT n, SYSCALL and interrupts, told line by line on the serial port: the same file runs on
 * QEMU and in hvlab, and the lines are to be the same. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum { CS = 0x10, DS = 0x18, USER_DS = 0x2b, USER_CS = 0x33, USER_CS32 = 0x23, TSS = 0x38, CODE32 = 0x48, ABSENT_DATA = 0x50, ABSENT_CODE = 0x58,
       CONFORMING = 0x60, GDT_WORDS = 13 };
enum { TF = 0x100, IF = 0x200, DF = 0x400, NT = 0x4000, AC = 0x40000 };
enum { P = 1, W = 2, U = 4, PS = 0x80 };
enum { UD = 6, DOUBLE_FAULT = 8, GP = 13, PF = 14, IRQ0 = 32, END = 33 };
#define NX (1ul << 63)
#define NONCANONICAL 0x800000000000ul

/* The window: pages of 4 KiB at 1 GiB, by their numbers. */
#define WINDOW 0x40000000ul
#define PAGE(n) (WINDOW + 4096ul * (n))
enum { USER_CODE = 0, USER_STACK = 8, PROBE = 16, LOW = 24, HIGH = 25, BEYOND = 26, DF_STACK = 32, IST_STACK = 34 };

struct frame {
	u64 r11, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	u64 flags, vector, error;
	u64 rip, cs, rflags, rsp, ss;
};

struct gate {
	u16 low, selector;
	u8 ist, type;
	u16 middle;
	u32 high, reserved;
};

extern char trap_gates[], trap_stack_top[], user_start[], user_end[], syscall_entry[], syscall_entry32[];
extern u64 pml4[], pdpt[], syscall_state[];
void traps_main(void);
int trap(const struct frame *f, u64 ss, u64 cs);
void syscall_told(void);
void enter_snippet(const u64 *frame, u64 rax, u64 rdx);

static struct gate idt[256];
static u64 gdt[GDT_WORDS];
static u8 tss[0x68] __attribute__((aligned(16)));
static u64 window_pd[512] __attribute__((aligned(4096))), window[512] __attribute__((aligned(4096)));
static u8 pages[48][4096] __attribute__((aligned(4096)));
static const char *start;
static unsigned ring, returns;
static u64 stack_override, feature_bits, code32;

#define ASM(...) __asm__ volatile(__VA_ARGS__)

static void out(u16 port, u8 value) { ASM("outb %0, %1" : : "a"(value), "Nd"(port)); }

static u8 in(u16 port)
{
	u8 value;

	ASM("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static void put(char c)
{
	while (!(in(0x3fd) & 0x20))
		;
	out(0x3f8, c);
}

static void text(const char *s)
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

static void word(const char *name, u64 value)
{
	put(' ');
	text(name);
	put('=');
	hex(value);
}

static u64 cr2(void) { u64 v; ASM("mov %%cr2, %0" : "=r"(v)); return v; }
static u64 cr0(void) { u64 v; ASM("mov %%cr0, %0" : "=r"(v)); return v; }
static u64 cr4(void) { u64 v; ASM("mov %%cr4, %0" : "=r"(v)); return v; }
static u64 dr6(void) { u64 v; ASM("mov %%dr6, %0" : "=r"(v)); return v; }
static void set_cr0(u64 v) { ASM("mov %0, %%cr0" : : "r"(v) : "memory"); }
static void set_cr2(u64 v) { ASM("mov %0, %%cr2" : : "r"(v)); }
static void set_cr4(u64 v) { ASM("mov %0, %%cr4" : : "r"(v) : "memory"); }
static void set_dr6(u64 v) { ASM("mov %0, %%dr6" : : "r"(v)); }
static void flush(void) { u64 v; ASM("mov %%cr3, %0; mov %0, %%cr3" : "=r"(v) : : "memory"); }

static u64 rdmsr(u32 msr)
{
	u32 low, high;

	ASM("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return low | (u64)high << 32;
}

static void wrmsr(u32 msr, u64 value) { ASM("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32))); }

static u64 base(void) { return ring ? PAGE(USER_CODE) : (u64)user_start; }

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

static void mask_all(void) { out(0x21, 0xff); }

static void set_gate(unsigned vector, u64 to, u16 selector, u8 type, u8 ist)
{
	idt[vector] = (struct gate){ to, selector, ist, type, to >> 16, to >> 32, 0 };
}

static u64 stub(unsigned vector) { return (u64)trap_gates + 16 * vector; }
static void gate(unsigned vector, u16 selector, u8 type, u8 ist) { set_gate(vector, stub(vector), selector, type, ist); }

/* A page of the window, in which INT 0x21 lies first. */
static void map(unsigned page, u64 bits)
{
	pages[page][0] = 0xcd;
	pages[page][1] = END;
	window[page] = (u64)pages[page] | bits;
	flush();
}

static void put_tss(unsigned at, u64 value)
{
	*(u64 __attribute__((may_alias, aligned(1))) *)(tss + at) = value;
}

static void load_tables(u16 gdt_limit, u16 idt_limit, u64 tss_limit)
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
static void fresh(void)
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

static void go(const char *name, char *snippet, u64 rax, u64 rdx, u64 flags)
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

#define SNIPPET(name) extern char s_##name[]
#define RUN(what, name, rax, rdx, flags) do { SNIPPET(name); go(what, s_##name, rax, rdx, flags); } while (0)

static void plain(void)
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

static void protection(void)
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

static void paging(void)
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

static void stepping(void)
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

static void flags(void)
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

static void gates(void)
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

static void stacks(void)
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

static void returning(void)
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

static void system_calls(void)
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

/* An interrupt that waits: the PIT's one-shot has ended and IF is 0. */
static void tick_waits(void)
{
	static const u8 words[][2] = { { 0x20, 0x11 }, { 0x21, 32 }, { 0x21, 4 }, { 0x21, 1 }, { 0x21, 0xff }, { 0x20, 0x0a },
				       { 0x43, 0x30 }, { 0x40, 100 }, { 0x40, 0 } };

	for (unsigned i = 0; i < sizeof(words) / sizeof(*words); i++)
		out(words[i][0], words[i][1]);
	while (!(in(0x20) & 1))
		;
	out(0x21, 0xfe);
}

/* Code of 32 bits in ring 3, which every trap leaves for 64 bits. */
static void compatible(void)
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

static void interrupts(void)
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
static void in_a_loop(void)
{
	static const u8 words[][2] = { { 0x43, 0x30 }, { 0x40, 0 }, { 0x40, 16 } };

	for (unsigned i = 0; i < sizeof(words) / sizeof(*words); i++)
		out(words[i][0], words[i][1]);
	out(0x21, 0xfe);
	RUN("an interrupt ends a loop", spin, 0, 0, IF);
}

static void clock_counts(void)
{
	u64 last = 0;
	unsigned wrong = 0;

	for (unsigned i = 0; i < 10000; i++) {
		u32 low, high;
		u64 now;

		ASM("rdtsc" : "=a"(low), "=d"(high));
		now = low | (u64)high << 32;
		wrong += now < last;
		last = now;
	}
	text(wrong ? "RDTSC went back\n" : "RDTSC never goes back\n");
}

static u32 features(void)
{
	u32 a = 7, b, c = 0, d;

	ASM("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	return b;
}

static void everything(void)
{
	for (ring = 0; ring <= 3; ring += 3) {
		plain();
		protection();
		paging();
		stepping();
		flags();
		gates();
		stacks();
		returning();
		interrupts();
		in_a_loop();
	}
	ring = 3;
	system_calls();
	compatible();
}

void traps_main(void)
{
	u32 has = features();

	pdpt[1] = (u64)window_pd | P | W | U;
	window_pd[0] = (u64)window | P | W | U;
	mask_all();
	out(0xa1, 0xff);
	out(0x3fb, 3);
	fresh();
	clock_counts();
	everything();
	feature_bits = (has >> 7 & 1) << 20 | (has >> 20 & 1) << 21;
	text("features");
	word("cr4", feature_bits);
	put('\n');
	for (ring = 0; ring <= 3; ring += 3)
		paging();
	text("traps: done\n");
	for (;;)
		ASM("cli; hlt");
}
