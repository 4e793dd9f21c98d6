/* What the loader told: E820 map and command line, from Linux's boot_params or from PVH's hvm_start_info. */
#include "lab.h"

enum { BP_E820_ENTRIES = 0x1e8, BP_CMD_LINE_PTR = 0x228, BP_E820_TABLE = 0x2d0, BP_E820_SIZE = 20 };
enum { PVH_MAGIC = 0x336ec578 };

struct hvm_start_info {
	u32 magic, version, flags, modules;
	u64 module_list, command_line, rsdp, memory_map;
	u32 memory_map_entries, reserved;
};

struct hvm_memory_map_entry {
	u64 address, size;
	u32 type, reserved;
};

struct boot_info boot;

static void add(u64 base, u64 length, u32 type)
{
	if (boot.entries < E820_MAX)
		boot.e820[boot.entries++] = (struct e820_entry){ base, length, type };
}

static void copy_command_line(u64 address)
{
	const char *text = (const char *)address;

	for (size_t i = 0; address && i < sizeof(boot.command_line) - 1 && text[i]; i++)
		boot.command_line[i] = text[i];
}

static void read_linux(u64 params)
{
	unsigned count = *(u8 *)(params + BP_E820_ENTRIES);

	for (u64 at = params + BP_E820_TABLE; count--; at += BP_E820_SIZE)
		add(read64(at), read64(at + 8), read32(at + 16));
	copy_command_line(read32(params + BP_CMD_LINE_PTR));
}

static void read_pvh(const struct hvm_start_info *info)
{
	const struct hvm_memory_map_entry *map = (const void *)info->memory_map;

	if (info->magic != PVH_MAGIC || info->version < 1)
		return;
	for (u32 i = 0; i < info->memory_map_entries; i++)
		add(map[i].address, map[i].size, map[i].type);
	copy_command_line(info->command_line);
}

void boot_read(enum boot_kind kind, u64 info)
{
	if (kind == BOOT_LINUX)
		read_linux(info);
	else
		read_pvh((const struct hvm_start_info *)info);
}

/* Linux's words; NULL where it prints the number. */
static const char *type_name(u32 type)
{
	switch (type) {
	case 1: return "usable";
	case 2: return "reserved";
	case 3: return "ACPI data";
	case 4: return "ACPI NVS";
	case 5: return "unusable";
	case 7: return "persistent (type 7)";
	case 12: return "persistent (type 12)";
	case 0xefffffff: return "soft reserved";
	default: return NULL;
	}
}

void boot_print_e820(void (*print_line)(const char *format, ...))
{
	for (unsigned i = 0; i < boot.entries; i++) {
		const struct e820_entry *e = &boot.e820[i];
		const char *name = type_name(e->type);
		u64 last = e->base + e->length - 1;

		if (name)
			print_line("BIOS-e820: [mem 0x%016lx-0x%016lx] %s\n", e->base, last, name);
		else
			print_line("BIOS-e820: [mem 0x%016lx-0x%016lx] type %u\n", e->base, last, e->type);
	}
}

/* The number after `name` (which ends in "=") in the command line. */
u64 boot_option(const char *name, u64 otherwise)
{
	size_t size = strlen(name);
	char word[32];
	u64 value;

	for (const char *at = boot.command_line; *at; at++) {
		size_t n = 0;

		if (memcmp(at, name, size) || (at > boot.command_line && at[-1] != ' '))
			continue;
		for (at += size; at[n] && at[n] != ' ' && n < sizeof(word) - 1; n++)
			word[n] = at[n];
		word[n] = 0;
		return parse_number(word, &value) ? value : otherwise;
	}
	return otherwise;
}
