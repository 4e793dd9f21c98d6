/*
 * Time and sleep.  The clock is the ACPI PM timer (24 bits at 3.579545 MHz, wraps after 4.7 s: read at least that often).
 * Nothing waits busily: the CPU halts with interrupts enabled until the 8254's one-shot or the UART wakes it, and
 * interrupts are disabled at all other times.
 */
#include "lab.h"

enum { PIC1 = 0x20, PIC2 = 0xa0, PIC_EOI = 0x20 };
enum { IRQ_TIMER = 0, IRQ_CASCADE = 2, IRQ_COM1 = 4, IRQ_BASE = 0x20 };
enum { PIT_CHANNEL0 = 0x40, PIT_CONTROL = 0x43, PIT_ONE_SHOT = 0x30, PIT_HZ = 1193182 };
enum { PM_TIMER = 0x608, PM_TIMER_HZ = 3579545, PM_TIMER_MASK = 0xffffff };
enum { SHORTEST = 100, LONGEST = 50000 }; /* sleeps, in us */

void time_interrupt(unsigned irq);

static u32 last;
static u64 ticks;
static u64 patience = FOREVER;

static void pic_init(void)
{
	static const u8 setup[][2] = {
		{ PIC1, 0x11 }, { PIC1 + 1, IRQ_BASE }, { PIC1 + 1, 1 << IRQ_CASCADE }, { PIC1 + 1, 1 },
		{ PIC2, 0x11 }, { PIC2 + 1, IRQ_BASE + 8 }, { PIC2 + 1, IRQ_CASCADE }, { PIC2 + 1, 1 },
		{ PIC1 + 1, 0xff & ~(1 << IRQ_TIMER | 1 << IRQ_CASCADE | 1 << IRQ_COM1) }, { PIC2 + 1, 0xff },
	};

	for (size_t i = 0; i < ARRAY_SIZE(setup); i++)
		outb(setup[i][0], setup[i][1]);
}

void time_init(void)
{
	outb(PIT_CONTROL, PIT_ONE_SHOT); /* stands still until a count is written */
	pic_init();
	last = inl(PM_TIMER) & PM_TIMER_MASK;
}

/* Every interrupt only wakes the CPU; the 8259's spurious ones (7, 15) take no EOI there. */
void time_interrupt(unsigned irq)
{
	if (irq >= 8 && irq != 15)
		outb(PIC2, PIC_EOI);
	if (irq != 7)
		outb(PIC1, PIC_EOI);
}

/* Microseconds since time_init. */
u64 time_us(void)
{
	u32 now = inl(PM_TIMER) & PM_TIMER_MASK;

	ticks += (now - last) & PM_TIMER_MASK;
	last = now;
	return ticks * SECONDS / PM_TIMER_HZ;
}

/* From now on no wait lasts beyond `us` from here (FOREVER: each has its own end). */
void time_patience(u64 us)
{
	patience = us == FOREVER ? FOREVER : time_us() + us;
}

static void halt_until_interrupt(void)
{
	__asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* At most 54 ms; the UART may end it earlier. */
static void nap(u64 us)
{
	u64 count = us * PIT_HZ / SECONDS;

	outb(PIT_CONTROL, PIT_ONE_SHOT);
	outb(PIT_CHANNEL0, count);
	outb(PIT_CHANNEL0, count >> 8);
	halt_until_interrupt();
}

/* Sleeps, each time twice as long, until done(argument) or the timeout; returns whether it was done. */
bool wait_until(bool (*done)(void *), void *argument, u64 timeout_us)
{
	u64 end = time_us() + timeout_us;

	for (u64 us = SHORTEST;; us = us * 2 < LONGEST ? us * 2 : LONGEST) {
		if (done(argument))
			return true;
		if (time_us() >= (end < patience ? end : patience))
			return false;
		nap(us);
	}
}

/* Sleeps until the UART's interrupt, with no timer running. */
void wait_input(void)
{
	outb(PIT_CONTROL, PIT_ONE_SHOT);
	halt_until_interrupt();
}
