/* The firmware's ACPI tables as an operating system finds them: RSDP in the BIOS area, XSDT or RSDT, the tables. */
#include "lab.h"

enum { BIOS_START = 0xe0000, BIOS_END = 0x100000, RSDP_V1_SIZE = 20 };

struct rsdp {
	char signature[8];
	u8 checksum;
	char oem[6];
	u8 revision;
	u32 rsdt, length;
	u64 xsdt;
	u8 extended_checksum, reserved[3];
} __attribute__((packed));

struct table {
	char signature[4];
	u32 length;
	u8 revision, checksum;
	char oem[6], oem_table[8];
	u32 oem_revision, creator, creator_revision;
};

static bool find_rsdp(struct rsdp *rsdp, u64 *address)
{
	for (u64 at = BIOS_START; at < BIOS_END; at += 16) {
		u8 sum = 0;

		if (memcmp((const void *)at, "RSD PTR ", 8))
			continue;
		memcpy(rsdp, (const void *)at, sizeof(*rsdp));
		for (unsigned i = 0; i < RSDP_V1_SIZE; i++)
			sum += ((const u8 *)rsdp)[i];
		*address = at;
		if (!sum)
			return true;
	}
	return false;
}

/* The root table and the width of its entries; false where there is none. */
static bool find_root(u64 *address, unsigned *width)
{
	struct rsdp rsdp;
	u64 at;

	if (!find_rsdp(&rsdp, &at))
		return false;
	*width = rsdp.revision && rsdp.xsdt ? 8 : 4;
	*address = *width == 8 ? rsdp.xsdt : rsdp.rsdt;
	return true;
}

u64 acpi_table(unsigned index)
{
	struct table root;
	unsigned width;
	u64 at, entry;

	if (!find_root(&at, &width) || !try_copy(&root, at, sizeof(root)) || root.length > PAGE
	    || sizeof(root) + (index + 1) * width > root.length || !try_read(at + sizeof(root) + index * width, width, &entry))
		return 0;
	return entry;
}

enum { FIRST_STRUCTURE = 48, DRHD_SIZE = 16, DRHD_BASE = 8, LONGEST = 0x10000 };

/* A DMAR by its signature, or what is left of one when a hypervisor has cleared the first letter or all four. */
static bool is_dmar(const struct table *t)
{
	return !memcmp(t->signature, "DMAR", 4) || !memcmp(t->signature, "\0MAR", 4) || !memcmp(t->signature, "\0\0\0", 4);
}

unsigned dmar_units(u64 *units, unsigned most)
{
	unsigned count = 0;
	struct table t;
	u64 table;

	for (unsigned i = 0; (table = acpi_table(i)); i++) {
		u64 kind, size;

		if (!try_copy(&t, table, sizeof(t)) || !is_dmar(&t) || t.length > LONGEST)
			continue;
		for (u64 at = FIRST_STRUCTURE; at + DRHD_SIZE <= t.length && count < most; at += size) {
			if (!try_read(table + at, 2, &kind) || !try_read(table + at + 2, 2, &size) || size < DRHD_SIZE)
				break;
			if (!kind && try_read(table + at + DRHD_BASE, 8, &units[count]))
				count++;
		}
	}
	return count;
}

static void print_table(u64 address)
{
	struct table t;

	if (!try_copy(&t, address, sizeof(t))) {
		print("acpi: no table can be read at 0x%lx\n", address);
		return;
	}
	for (unsigned i = 0; i < 4; i++)
		print("%c", t.signature[i] >= ' ' && t.signature[i] < 0x7f ? t.signature[i] : '.');
	print(" 0x%016lx %06x (v%02u)\n", address, t.length, t.revision);
}

void acpi_print(void)
{
	struct rsdp rsdp;
	unsigned width;
	u64 at;

	if (!find_rsdp(&rsdp, &at)) {
		print("acpi: no RSDP in 0x%x-0x%x\n", BIOS_START, BIOS_END - 1);
		return;
	}
	print("RSDP 0x%016lx %06x (v%02u)\n", at, rsdp.revision ? rsdp.length : RSDP_V1_SIZE, rsdp.revision);
	find_root(&at, &width);
	print_table(at);
	for (unsigned i = 0; (at = acpi_table(i)); i++)
		print_table(at);
}
