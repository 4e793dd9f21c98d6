/* What the processor does with exceptions, INT n, SYSCALL and interrupts, told line by line on the serial port: the same file runs on
 * QEMU and in hvlab, and the lines are to be the same. */

#include "traps.h"

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
