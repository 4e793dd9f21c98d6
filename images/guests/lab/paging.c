/*
 * The guest's own page tables: everything the CPU reaches mapped to itself, and only the text executable.
 *
 *   PML4[0], [1] -> pdpt[0], [1]      1 GiB pages, writable, no execute
 *   pdpt[0][0]   -> pd                2 MiB pages of the first GiB
 *   pd[0]        -> pt_low            4 KiB pages; page 0 is absent, so that null pointers fault
 *   pd[8]        -> pt_image          4 KiB pages of the image at 16 MiB: text r-x, constants r--, the rest rw-
 */
#include "lab.h"

#define P_PRESENT (1ull << 0)
#define P_WRITE (1ull << 1)
#define P_LARGE (1ull << 7)
#define P_NX (1ull << 63)
#define RW (P_PRESENT | P_WRITE | P_NX)

#define MIB2 (2ull << 20)
#define GIB (1ull << 30)
#define MOST (1024 * GIB)
#define MSR_EFER 0xc0000080
#define EFER_NXE (1u << 11)
#define CR0_WP (1ull << 16)
#define CPUID_1GIB_PAGES (1u << 26)

extern char image_start[], text_end[], rodata_end[];

typedef u64 table[512] __attribute__((aligned(4096)));
static table pml4, pdpt[2], pd, pt_low, pt_image;

u64 cpu_reach;

static u64 reach(void)
{
	unsigned bits = cpuid(0x80000008, 0).eax & 0xff;

	return bits < 40 ? 1ull << bits : MOST;
}

static u64 image_page(u64 address)
{
	if (address < (u64)text_end)
		return address | P_PRESENT;
	if (address < (u64)rodata_end)
		return address | P_PRESENT | P_NX;
	return address | RW;
}

static void fill(void)
{
	u64 image = (u64)image_start;

	for (u64 at = 0; at < cpu_reach; at += GIB)
		pdpt[at / GIB / 512][at / GIB % 512] = at | RW | P_LARGE;
	for (u64 i = 0; i < 512; i++) {
		pd[i] = i * MIB2 | RW | P_LARGE;
		pt_low[i] = i * PAGE | RW;
		pt_image[i] = image_page(image + i * PAGE);
	}
	pt_low[0] = 0;
	pd[0] = (u64)pt_low | P_PRESENT | P_WRITE;
	pd[image / MIB2] = (u64)pt_image | P_PRESENT | P_WRITE;
	pdpt[0][0] = (u64)pd | P_PRESENT | P_WRITE;
	pml4[0] = (u64)pdpt[0] | P_PRESENT | P_WRITE;
	pml4[1] = (u64)pdpt[1] | P_PRESENT | P_WRITE;
}

static void use(void)
{
	u32 low, high;
	u64 cr0;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(MSR_EFER));
	__asm__ volatile("wrmsr" : : "a"(low | EFER_NXE), "d"(high), "c"(MSR_EFER));
	__asm__ volatile("mov %0, %%cr3" : : "r"(pml4) : "memory");
	__asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
	__asm__ volatile("mov %0, %%cr0" : : "r"(cr0 | CR0_WP) : "memory");
}

void paging_init(void)
{
	if (!(cpuid(0x80000001, 0).edx & CPUID_1GIB_PAGES)) {
		print("lab: this CPU has no 1 GiB pages (CPUID 0x80000001 EDX bit 26), stopped\n");
		halt();
	}
	cpu_reach = reach();
	fill();
	use();
}
