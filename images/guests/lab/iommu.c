/*
 * The remapping units (VT-d) that the DMAR names, driven as Linux drives them: one domain, in which all RAM of the E820 map and the RMRRs
 * are mapped to themselves, a context for every function, translation on.  All units share the tables, so these suit the least able one.
 *
 *   root[bus] -> contexts[device, function] -> level 5, 4 or 3 -> ... -> leaves of 2 MiB where every unit takes them, else of 4 KiB
 */
#include "lab.h"

enum { UNITS = 16, DMAR_MOST = 0x8000, DMAR_WIDTH = 36, DMAR_FLAGS = 37, DMAR_FIRST = 48, DRHD = 0, RMRR = 1, DID = 1 };
enum { VER = 0x00, CAP = 0x08, ECAP = 0x10, GCMD = 0x18, GSTS = 0x1c, RTADDR = 0x20, CCMD = 0x28, FSTS = 0x34, PMEN = 0x64 };
enum { READ_WRITE = 3, SUPERPAGE = 0x80, TABLES_MOST = 8192 }; /* 8192 tables map 16 GiB by 4 KiB pages */
#define ADDRESS 0x000ffffffffff000ull
#define MIB2 (2ull << 20)
#define TE (1u << 31)
#define SRTP (1u << 30)
#define WBF (1u << 27)
#define QIE (1u << 26)
#define STICKY 0x96ffffffu
#define BUSY (1u << 31) /* in the upper half of CCMD and IOTLB */
#define EPM (1u << 31)
#define ICC_GLOBAL (5ull << 61) /* CCMD: ICC, CIRG 1 */
#define IVT_GLOBAL (1ull << 63 | 1ull << 60 | 3ull << 48) /* IOTLB: IVT, IIRG 1, drains */
#define FAULT_BITS 0x7f

struct unit {
	u64 base, cap, ecap;
};

static u8 dmar[DMAR_MOST];
static u32 dmar_length;
static u64 dmar_address;
static struct unit units[UNITS];
static unsigned unit_count, levels;
static bool superpages;
static u64 *root, *top;
static u64 *tables[TABLES_MOST]; /* every page that was ever taken for a table; the first table_count are in use */
static unsigned table_count;

static u64 field(u64 word, unsigned high, unsigned low) { return word >> low & ((2ull << (high - low)) - 1); }

static u64 at(u32 offset, unsigned size)
{
	u64 v = 0;

	memcpy(&v, dmar + offset, size);
	return v;
}

/* The table into `dmar`: signature, length and checksum right. */
static bool find_dmar(void)
{
	for (unsigned i = 0; (dmar_address = acpi_table(i)); i++) {
		u8 sum = 0;

		if (!try_copy(dmar, dmar_address, 8) || memcmp(dmar, "DMAR", 4))
			continue;
		dmar_length = at(4, 4);
		if (dmar_length < DMAR_FIRST || dmar_length > DMAR_MOST || !try_copy(dmar, dmar_address, dmar_length))
			continue;
		for (u32 j = 0; j < dmar_length; j++)
			sum += dmar[j];
		if (!sum)
			return true;
	}
	print("iommu: no DMAR table\n");
	return false;
}

/* The next structure of `type` behind `offset` (0: the first one); 0 where there is none.  It has at least `least` bytes. */
static u32 next_structure(u32 offset, unsigned type, unsigned least)
{
	for (offset = offset ? offset + at(offset + 2, 2) : DMAR_FIRST; offset + 4 <= dmar_length; offset += at(offset + 2, 2)) {
		u32 length = at(offset + 2, 2);

		if (length < 4 || offset + length > dmar_length)
			return 0;
		if (at(offset, 2) == type && length >= least)
			return offset;
	}
	return 0;
}

/* The units of segment 0 that answer. */
static bool find_units(void)
{
	unit_count = 0;
	for (u32 o = 0; (o = next_structure(o, DRHD, 16)) && unit_count < UNITS;) {
		struct unit u = { at(o + 8, 8), 0, 0 };

		if (at(o + 6, 2))
			print("iommu: unit 0x%lx is of segment %lu and left alone\n", u.base, at(o + 6, 2));
		else if (!try_read(u.base + CAP, 8, &u.cap) || !try_read(u.base + ECAP, 8, &u.ecap) || !u.cap || !~u.cap)
			print("iommu: no unit answers at 0x%lx\n", u.base);
		else
			units[unit_count++] = u;
	}
	if (!unit_count)
		print("iommu: no units\n");
	return unit_count;
}

/* Page tables */

/* An empty table; NULL where there is no memory for it, or enough were taken. */
static u64 *table_page(void)
{
	if (table_count == TABLES_MOST || (!tables[table_count] && !(tables[table_count] = page_alloc())))
		return NULL;
	return memset(tables[table_count++], 0, PAGE);
}

/* One leaf at `leaf` (1 or 2), where nothing larger maps the address yet; false where a table is missing. */
static bool map_leaf(u64 address, unsigned leaf)
{
	u64 *table = top, *entry;

	for (unsigned level = levels;; level--) {
		entry = &table[address >> (12 + 9 * (level - 1)) & 511];
		if (level == leaf)
			break;
		if (level == 2 && (*entry & SUPERPAGE))
			return true;
		if (!(*entry & READ_WRITE)) {
			if (!(table = table_page()))
				return false;
			*entry = (u64)table | READ_WRITE;
		}
		table = (u64 *)(*entry & ADDRESS);
	}
	if (leaf == 2 && (*entry & READ_WRITE) && !(*entry & SUPERPAGE)) {
		for (unsigned i = 0; i < 512; i++)
			map_leaf(address + i * PAGE, 1);
		return true;
	}
	*entry = address | READ_WRITE | (leaf == 2 ? SUPERPAGE : 0);
	return true;
}

/* First address that none of the units takes. */
static u64 reach(void)
{
	unsigned bits = 12 + 9 * levels;

	for (unsigned i = 0; i < unit_count; i++)
		if (field(units[i].cap, 21, 16) + 1 < bits)
			bits = field(units[i].cap, 21, 16) + 1;
	return 1ull << bits;
}

static bool map_range(u64 start, u64 end)
{
	if (end > reach()) {
		print("iommu: the units take addresses below 0x%lx, 0x%lx-0x%lx is not mapped\n", reach(), start > reach() ? start : reach(), end - 1);
		end = reach();
	}
	while (start < end) {
		unsigned leaf = superpages && start % MIB2 == 0 && end - start >= MIB2 ? 2 : 1;

		if (!map_leaf(start, leaf)) {
			print("iommu: no more tables after %u, 0x%lx-0x%lx is not mapped\n", table_count, start, end - 1);
			return false;
		}
		start += leaf == 2 ? MIB2 : PAGE;
	}
	return true;
}

/* The RMRRs come first: firmware needs them whatever becomes of the rest. */
static void map_memory(bool rmrrs)
{
	for (u32 o = 0; rmrrs && (o = next_structure(o, RMRR, 24));) {
		u64 base = at(o + 8, 8), limit = at(o + 16, 8);

		klog("DMAR: RMRR base: 0x%014lx end: 0x%014lx\n", base, limit);
		if (!at(o + 6, 2) && base < limit && !map_range(base & ~(PAGE - 1), (limit + PAGE) & ~(PAGE - 1)))
			return;
	}
	for (unsigned i = 0; i < boot.entries; i++) {
		u64 start = (boot.e820[i].base + PAGE - 1) & ~(PAGE - 1), end = (boot.e820[i].base + boot.e820[i].length) & ~(PAGE - 1);

		if (boot.e820[i].type == E820_USABLE && start < end && !map_range(start, end))
			return;
	}
}

/* The shallowest tables that every unit walks and that reach all RAM, else the deepest ones. */
static bool choose_levels(void)
{
	u64 common = ~0ull, ram = 0;

	for (unsigned i = 0; i < unit_count; i++)
		common &= field(units[i].cap, 12, 8);
	for (unsigned i = 0; i < boot.entries; i++)
		if (boot.e820[i].type == E820_USABLE && boot.e820[i].base + boot.e820[i].length > ram)
			ram = boot.e820[i].base + boot.e820[i].length;
	levels = 0;
	for (unsigned n = 3; n <= 5; n++)
		if ((common >> (n - 2) & 1) && (!levels || 1ull << (12 + 9 * levels) < ram))
			levels = n;
	if (!levels)
		print("iommu: the units have no depth of tables in common\n");
	return levels;
}

static bool add_context(u8 bus, u8 devfn)
{
	u64 *contexts = (u64 *)(root[2 * bus] & ADDRESS);

	if (!contexts) {
		if (!(contexts = table_page()))
			return false;
		root[2 * bus] = (u64)contexts | 1;
	}
	contexts[2 * devfn + 1] = DID << 8 | (levels - 2);
	contexts[2 * devfn] = (u64)top | 1;
	return true;
}

/* Every function under its own requester id, and each bus under 00.0, by which a PCIe-to-PCI bridge stands for what is behind it. */
static bool add_contexts(void)
{
	for (unsigned i = 0; i < pci_count; i++) {
		const struct pci_function *f = &pci_functions[i];

		if (!add_context(f->bus, f->device << 3 | f->function) || !add_context(f->bus, 0))
			return false;
	}
	return true;
}

static bool build(bool rmrrs)
{
	if (!choose_levels())
		return false;
	table_count = 0;
	superpages = true;
	for (unsigned i = 0; i < unit_count; i++)
		superpages = superpages && field(units[i].cap, 34, 34);
	if (!(top = table_page()) || !(root = table_page()) || !add_contexts()) {
		print("iommu: no memory for the tables\n");
		return false;
	}
	map_memory(rmrrs);
	return true;
}

/* Registers */

struct state {
	u64 address;
	u32 bits, wanted;
};

static bool settled(void *argument)
{
	const struct state *s = argument;

	return (read32(s->address) & s->bits) == s->wanted;
}

static bool wait_for(const struct unit *u, unsigned offset, u32 bits, u32 wanted)
{
	struct state s = { u->base + offset, bits, wanted };

	if (wait_until(settled, &s, SECONDS))
		return true;
	print("iommu: unit 0x%lx does not answer, register 0x%x is 0x%x\n", u->base, offset, read32(u->base + offset));
	return false;
}

/* One command over those that are on, and its answer. */
static bool command(const struct unit *u, u32 bit)
{
	write32(u->base + GCMD, (read32(u->base + GSTS) & STICKY) | bit);
	return wait_for(u, GSTS, bit, bit == WBF ? 0 : bit);
}

static bool withdraw(const struct unit *u, u32 bit)
{
	u32 on = read32(u->base + GSTS);

	if (!(on & bit))
		return true;
	write32(u->base + GCMD, on & STICKY & ~bit);
	return wait_for(u, GSTS, bit, 0);
}

static bool forget(const struct unit *u)
{
	unsigned iotlb = 16 * field(u->ecap, 17, 8) + 8;

	write64(u->base + CCMD, ICC_GLOBAL);
	if (!wait_for(u, CCMD + 4, BUSY, 0))
		return false;
	write64(u->base + iotlb, IVT_GLOBAL);
	return wait_for(u, iotlb + 4, BUSY, 0);
}

static void clear_faults(const struct unit *u)
{
	for (unsigned i = 0; i <= field(u->cap, 47, 40); i++)
		write32(u->base + 16 * (field(u->cap, 33, 24) + i) + 12, 1u << 31);
	write32(u->base + FSTS, FAULT_BITS);
}

static bool enable(const struct unit *u)
{
	if (field(u->cap, 4, 4) && !command(u, WBF))
		return false;
	write64(u->base + RTADDR, (u64)root);
	if (!command(u, SRTP) || !forget(u))
		return false;
	clear_faults(u);
	if (!command(u, TE))
		return false;
	if (!(field(u->cap, 6, 5) && (read32(u->base + PMEN) & EPM)))
		return true;
	write32(u->base + PMEN, 0);
	return wait_for(u, PMEN, 1, 0);
}

static bool disable_all(void)
{
	for (unsigned i = 0; i < unit_count; i++)
		if (!withdraw(&units[i], TE) || !withdraw(&units[i], QIE))
			return false;
	return true;
}

static bool coherent(void)
{
	for (unsigned i = 0; i < unit_count; i++)
		if (!field(units[i].ecap, 0, 0))
			return false;
	return true;
}

/* Commands of the monitor */

void iommu_on(bool rmrrs)
{
	if (!find_dmar())
		return;
	klog("DMAR: Host address width %u\n", dmar[DMAR_WIDTH] + 1);
	if (!find_units() || !disable_all())
		return;
	for (unsigned i = 0; i < unit_count; i++) {
		u32 version = read32(units[i].base + VER);

		klog("DMAR: dmar%u: reg_base_addr %lx ver %u:%u cap %lx ecap %lx\n", i, units[i].base, version >> 4 & 15, version & 15, units[i].cap,
		     units[i].ecap);
	}
	if (!build(rmrrs))
		return;
	if (!coherent())
		__asm__ volatile("wbinvd" : : : "memory");
	for (unsigned i = 0; i < unit_count; i++)
		if (!enable(&units[i]))
			return;
	klog("DMAR: Intel(R) Virtualization Technology for Directed I/O\n");
	print("iommu: on, %u functions, %u levels, leaves of %s, %u tables\n", pci_count, levels, superpages ? "2 MiB" : "4 KiB", table_count);
}

void iommu_off(void)
{
	if (find_dmar() && find_units() && disable_all())
		print("iommu: off\n");
}

void iommu_print(void)
{
	if (!find_dmar())
		return;
	print("DMAR 0x%lx, %u bytes, host address width %u, flags 0x%x\n", dmar_address, dmar_length, dmar[DMAR_WIDTH] + 1, dmar[DMAR_FLAGS]);
	for (u32 o = 0; (o = next_structure(o, RMRR, 24));)
		print("RMRR 0x%lx-0x%lx\n", at(o + 8, 8), at(o + 16, 8));
	if (!find_units())
		return;
	for (const struct unit *u = units; u < units + unit_count; u++)
		print("unit 0x%lx: CAP 0x%lx, ECAP 0x%lx, GSTS 0x%x, RTADDR 0x%lx, FSTS 0x%x\n", u->base, u->cap, u->ecap, read32(u->base + GSTS),
		      read64(u->base + RTADDR), read32(u->base + FSTS));
}
