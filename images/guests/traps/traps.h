/* What the files of the traps guest share: the PC as each case finds it, and the words that are told. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum { CS = 0x10, DS = 0x18, USER_DS = 0x2b, USER_CS = 0x33, USER_CS32 = 0x23, TSS = 0x38, CODE32 = 0x48, ABSENT_DATA = 0x50, ABSENT_CODE = 0x58,
       CONFORMING = 0x60, GDT_WORDS = 13 };
enum { TF = 0x100, IF = 0x200, DF = 0x400, NT = 0x4000, AC = 0x40000 };
enum { P = 1, W = 2, U = 4 };
enum { UD = 6, DOUBLE_FAULT = 8, GP = 13, PF = 14, IRQ0 = 32, END = 33 };
#define NX (1ul << 63)
#define NONCANONICAL 0x800000000000ul

/* The window: pages of 4 KiB at 1 GiB, by their numbers. */
#define WINDOW 0x40000000ul
#define PAGE(n) (WINDOW + 4096ul * (n))
enum { USER_CODE = 0, USER_STACK = 8, PROBE = 16, LOW = 24, HIGH = 25, DF_STACK = 32, IST_STACK = 34 };

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

extern char trap_gates[], user_start[], user_end[], syscall_entry[], syscall_entry32[];
extern u64 pdpt[], syscall_state[];

/* state.c: what the processor is told of */
extern struct gate idt[256];
extern u64 gdt[GDT_WORDS], window_pd[512], window[512];
extern u8 tss[0x68], pages[48][4096];

/* Of the case that runs: its ring, how many traps return, its stack where that is not the usual one; and what all cases from now on have. */
extern unsigned ring, returns;
extern u64 stack_override, feature_bits, code32;

void set_gate(unsigned vector, u64 to, u16 selector, u8 type, u8 ist);
void gate(unsigned vector, u16 selector, u8 type, u8 ist);
void map(unsigned page, u64 bits);
void put_tss(unsigned at, u64 value);
void load_tables(u16 gdt_limit, u16 idt_limit, u64 tss_limit);
void fresh(void);
u64 base(void);
void go(const char *name, char *snippet, u64 rax, u64 rdx, u64 flags);
void mask_all(void);

/* tell.c */
extern const char *start;
void put(char c);
void text(const char *s);
void word(const char *name, u64 value);

/* the cases */
void plain(void);
void protection(void);
void paging(void);
void stepping(void);
void flags(void);
void gates(void);
void stacks(void);
void returning(void);
void system_calls(void);
void compatible(void);
void tick_waits(void);
void interrupts(void);
void in_a_loop(void);

/* C that entry.S calls, and what it has for C */
void traps_main(void);
int trap(const struct frame *f, u64 ss, u64 cs);
void syscall_told(void);
void enter_snippet(const u64 *frame, u64 rax, u64 rdx);

#define ASM(...) __asm__ volatile(__VA_ARGS__)
#define SNIPPET(name) extern char s_##name[]
#define RUN(what, name, rax, rdx, flags) do { SNIPPET(name); go(what, s_##name, rax, rdx, flags); } while (0)

static inline void out(u16 port, u8 value) { ASM("outb %0, %1" : : "a"(value), "Nd"(port)); }

static inline u8 in(u16 port)
{
	u8 value;

	ASM("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline u64 cr2(void) { u64 v; ASM("mov %%cr2, %0" : "=r"(v)); return v; }
static inline u64 cr0(void) { u64 v; ASM("mov %%cr0, %0" : "=r"(v)); return v; }
static inline u64 cr4(void) { u64 v; ASM("mov %%cr4, %0" : "=r"(v)); return v; }
static inline u64 dr6(void) { u64 v; ASM("mov %%dr6, %0" : "=r"(v)); return v; }
static inline void set_cr0(u64 v) { ASM("mov %0, %%cr0" : : "r"(v) : "memory"); }
static inline void set_cr2(u64 v) { ASM("mov %0, %%cr2" : : "r"(v)); }
static inline void set_cr4(u64 v) { ASM("mov %0, %%cr4" : : "r"(v) : "memory"); }
static inline void set_dr6(u64 v) { ASM("mov %0, %%dr6" : : "r"(v)); }
static inline void flush(void) { u64 v; ASM("mov %%cr3, %0; mov %0, %%cr3" : "=r"(v) : : "memory"); }

static inline u64 rdmsr(u32 msr)
{
	u32 low, high;

	ASM("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return low | (u64)high << 32;
}

static inline void wrmsr(u32 msr, u64 value) { ASM("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32))); }
