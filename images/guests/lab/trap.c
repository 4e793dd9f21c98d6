/* Exceptions: those of guarded instructions are told to the caller, any other stops the guest. */
#include "lab.h"

struct frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	u64 vector, error;
	u64 rip, cs, rflags, rsp, ss;
};

struct gate {
	u16 offset_low, selector;
	u8 ist, type;
	u16 offset_middle;
	u32 offset_high, reserved;
};

/* Where an instruction may fault, and where the guest goes on then. */
struct guard {
	u64 rip, resume;
};

#define GUARDED(instruction) "1: " instruction "\n2:\n.pushsection .extable, \"a\"\n.quad 1b, 2b\n.popsection\n"

enum { VECTORS = 48, IRQ_BASE = 32, PAGE_FAULT = 14, INTERRUPT_GATE = 0x8e, CS = 0x10 };

extern char trap_gates[];
extern const struct guard extable_start[], extable_end[];
void trap(struct frame *f);
void time_interrupt(unsigned irq);

struct fault fault;
static struct gate idt[VECTORS];

static const char *const names[IRQ_BASE] = {
	"#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#9", "#TS", "#NP", "#SS", "#GP", "#PF", "#15",
	"#MF", "#AC", "#MC", "#XM", "#VE", "#CP", "#22", "#23", "#24", "#25", "#26", "#27", "#HV", "#VC", "#SX", "#31",
};

/* Vectors for which the CPU pushes an error code. */
#define HAS_ERROR (1u << 8 | 0x1fu << 10 | 1u << 17 | 1u << 21 | 1u << 29 | 1u << 30)

void trap_init(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) idtr = { sizeof(idt) - 1, (u64)idt };

	for (unsigned v = 0; v < VECTORS; v++) {
		u64 to = (u64)trap_gates + 16 * v;

		idt[v] = (struct gate){ to, CS, 0, INTERRUPT_GATE, to >> 16, to >> 32, 0 };
	}
	__asm__ volatile("lidt %0" : : "m"(idtr));
}

_Noreturn void halt(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

const char *fault_name(void)
{
	return names[fault.vector];
}

static u64 cr2(void)
{
	u64 v;

	__asm__ volatile("mov %%cr2, %0" : "=r"(v));
	return v;
}

static _Noreturn void stop(const struct frame *f)
{
	print("lab: unexpected exception %s", names[f->vector]);
	if (HAS_ERROR >> f->vector & 1)
		print("(0x%lx)", f->error);
	print(" at RIP 0x%lx", f->rip);
	if (f->vector == PAGE_FAULT)
		print(", address 0x%lx", cr2());
	print("\n");
	halt();
}

static bool recover(struct frame *f)
{
	for (const struct guard *g = extable_start; g < extable_end; g++) {
		if (g->rip != f->rip)
			continue;
		fault = (struct fault){ true, f->vector, f->error, f->vector == PAGE_FAULT ? cr2() : 0 };
		f->rip = g->resume;
		return true;
	}
	return false;
}

void trap(struct frame *f)
{
	if (f->vector >= IRQ_BASE)
		time_interrupt(f->vector - IRQ_BASE);
	else if (!recover(f))
		stop(f);
}

#define READ(insn, value, address) \
	__asm__ volatile(GUARDED(insn " (%1), %0") : "+r"(value) : "r"(address) : "memory")
#define WRITE(insn, value, address) \
	__asm__ volatile(GUARDED(insn " %0, (%1)") : : "r"(value), "r"(address) : "memory")

/* A load of 1, 2, 4 or 8 bytes; false where it faults, and `fault` says how. */
bool try_read(u64 address, unsigned width, u64 *value)
{
	u8 v8 = 0;
	u16 v16 = 0;
	u32 v32 = 0;
	u64 v64 = 0;

	fault.happened = false;
	switch (width) {
	case 1: READ("movb", v8, address); break;
	case 2: READ("movw", v16, address); break;
	case 4: READ("movl", v32, address); break;
	default: READ("movq", v64, address); break;
	}
	*value = v8 | v16 | v32 | v64;
	return !fault.happened;
}

/* A store of 1, 2, 4 or 8 bytes; false where it faults. */
bool try_write(u64 address, unsigned width, u64 value)
{
	fault.happened = false;
	switch (width) {
	case 1: WRITE("movb", (u8)value, address); break;
	case 2: WRITE("movw", (u16)value, address); break;
	case 4: WRITE("movl", (u32)value, address); break;
	default: WRITE("movq", value, address); break;
	}
	return !fault.happened;
}

/* Copies by loads of 4 bytes where all is aligned (device registers want that), else of 1; false at the first fault. */
bool try_copy(void *to, u64 from, size_t size)
{
	unsigned width = (from | size) % 4 ? 1 : 4;
	u64 value;

	for (size_t i = 0; i < size; i += width) {
		if (!try_read(from + i, width, &value))
			return false;
		memcpy((u8 *)to + i, &value, width);
	}
	return true;
}

/* VMMCALL with RAX = *rax, which becomes what the hypervisor returns; false where it faults. */
bool try_vmmcall(u64 *rax)
{
	u64 rbx = 0, rcx = 0, rdx = 0;

	fault.happened = false;
	__asm__ volatile(GUARDED("vmmcall") : "+a"(*rax), "+b"(rbx), "+c"(rcx), "+d"(rdx) : : "memory");
	return !fault.happened;
}
