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
	struct table root;
	u64 at, entry;
	unsigned width;

	if (!find_rsdp(&rsdp, &at)) {
		print("acpi: no RSDP in 0x%x-0x%x\n", BIOS_START, BIOS_END - 1);
		return;
	}
	print("RSDP 0x%016lx %06x (v%02u)\n", at, rsdp.revision ? rsdp.length : RSDP_V1_SIZE, rsdp.revision);
	width = rsdp.revision && rsdp.xsdt ? 8 : 4;
	at = width == 8 ? rsdp.xsdt : rsdp.rsdt;
	print_table(at);
	if (!try_copy(&root, at, sizeof(root)) || root.length > PAGE)
		return;
	for (u32 offset = sizeof(root); offset + width <= root.length; offset += width)
		if (try_read(at + offset, width, &entry))
			print_table(entry);
}
