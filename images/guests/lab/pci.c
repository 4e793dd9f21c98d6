/* PCI by configuration mechanism 1: the scan through all bridges, told in Linux's words. */
#include "lab.h"

enum { CONFIG_ADDRESS = 0xcf8, CONFIG_DATA = 0xcfc };
enum { ID = 0x00, COMMAND = 0x04, CLASS = 0x08, HEADER = 0x0c, BAR0 = 0x10, BUSES = 0x18, CAPABILITIES = 0x34 };
enum { HEADER_BRIDGE = 1, HEADER_MULTIFUNCTION = 0x80, FUNCTIONS = 1024, BUS_COUNT = 256 };
enum { BAR_IO = 1, BAR_TYPE = 6, BAR_64 = 4, BAR_PREFETCHABLE = 8 };

struct pci_function pci_functions[FUNCTIONS];
unsigned pci_count;
static bool seen[BUS_COUNT];

/* From now on the data port is this register. */
static void select(const struct pci_function *f, unsigned offset)
{
	outl(CONFIG_ADDRESS, 1u << 31 | f->bus << 16 | f->device << 11 | f->function << 8 | offset);
}

static u32 config_read(const struct pci_function *f, unsigned offset)
{
	select(f, offset);
	return inl(CONFIG_DATA);
}

u32 pci_config_read(const struct pci_function *f, unsigned offset)
{
	return config_read(f, offset);
}

void pci_config_write(const struct pci_function *f, unsigned offset, u32 value)
{
	select(f, offset);
	outl(CONFIG_DATA, value);
}

static u16 command_read(const struct pci_function *f)
{
	return config_read(f, COMMAND);
}

static void command_write(const struct pci_function *f, u16 value)
{
	select(f, COMMAND);
	outw(CONFIG_DATA, value); /* 16 bits only: the status register beside it clears by writing 1 */
}

void pci_command(const struct pci_function *f, u16 clear, u16 set)
{
	command_write(f, (command_read(f) & ~clear) | set);
}

/* The register's value, and what it keeps of all ones: its writable address bits. */
static u32 probe(const struct pci_function *f, unsigned offset, u32 *kept)
{
	u32 old = config_read(f, offset);

	outl(CONFIG_DATA, ~0u);
	*kept = inl(CONFIG_DATA);
	outl(CONFIG_DATA, old);
	return old;
}

/* The lowest of the address bits that can be written is the size. */
static u64 size_of(u64 kept)
{
	return kept & -kept;
}

/* Reads the base address register `index`; returns how many registers it takes. */
static unsigned read_bar(const struct pci_function *f, unsigned index, struct bar *bar)
{
	unsigned offset = BAR0 + 4 * index;
	u32 kept, high, kept_high = 0, low = probe(f, offset, &kept), flags = low & BAR_IO ? 3 : 15;

	bar->io = low & BAR_IO;
	bar->wide = !bar->io && (low & BAR_TYPE) == BAR_64 && index < 5;
	bar->prefetchable = !bar->io && (low & BAR_PREFETCHABLE);
	bar->address = low & ~flags;
	if (bar->wide) {
		high = probe(f, offset + 4, &kept_high);
		bar->address |= (u64)high << 32;
	}
	bar->size = size_of((u64)kept_high << 32 | (kept & ~flags));
	return bar->wide ? 2 : 1;
}

static void print_bar(const struct pci_function *f, unsigned index)
{
	const struct bar *bar = &f->bars[index];
	u64 last = bar->address + bar->size - 1;

	klog("pci 0000:%02x:%02x.%x: reg 0x%x: ", f->bus, f->device, f->function, BAR0 + 4 * index);
	if (bar->io)
		print("[io  0x%04lx-0x%04lx]\n", bar->address, last);
	else
		print("[mem 0x%08lx-0x%08lx%s%s]\n", bar->address, last, bar->wide ? " 64bit" : "", bar->prefetchable ? " pref" : "");
}

/* Sizing moves the registers for a moment, so the function must not answer at them meanwhile. */
static void read_bars(struct pci_function *f)
{
	unsigned count = f->header == HEADER_BRIDGE ? 2 : f->header ? 0 : 6;
	u16 command = command_read(f);

	if (command & PCI_COMMAND_DECODE)
		command_write(f, command & ~PCI_COMMAND_DECODE);
	for (unsigned i = 0; i < count; i += read_bar(f, i, &f->bars[i]))
		;
	if (command & PCI_COMMAND_DECODE)
		command_write(f, command);
	for (unsigned i = 0; i < count; i++)
		if (f->bars[i].size)
			print_bar(f, i);
}

/* Adds the function if there is one; returns whether its device has more than one. */
static bool scan_function(u8 bus, u8 device, u8 function)
{
	struct pci_function f = { .bus = bus, .device = device, .function = function };
	u32 id = config_read(&f, ID), class_code, header;

	if ((id & 0xffff) == 0xffff || (id & 0xffff) == 0 || pci_count == FUNCTIONS)
		return false;
	class_code = config_read(&f, CLASS);
	header = config_read(&f, HEADER) >> 16;
	f.vendor = id;
	f.id = id >> 16;
	f.revision = class_code;
	f.class_code = class_code >> 8;
	f.header = header & 0x7f;
	klog("pci 0000:%02x:%02x.%x: [%04x:%04x] type %02x class 0x%06x\n", bus, device, function, f.vendor, f.id, f.header, f.class_code);
	read_bars(&f);
	pci_functions[pci_count++] = f;
	return header & HEADER_MULTIFUNCTION;
}

static void scan_bus(u8 bus);

/* A bridge leads only to buses of higher numbers, so that a wrong number cannot make a circle. */
static void scan_behind(const struct pci_function *bridge)
{
	u32 buses = config_read(bridge, BUSES);
	u8 secondary = buses >> 8, subordinate = buses >> 16;

	if (secondary <= bridge->bus || subordinate < secondary || seen[secondary])
		return;
	scan_bus(secondary);
	klog("pci 0000:%02x:%02x.%x: PCI bridge to [bus %02x", bridge->bus, bridge->device, bridge->function, secondary);
	if (subordinate > secondary)
		print("-%02x", subordinate);
	print("]\n");
}

static void scan_bus(u8 bus)
{
	unsigned first = pci_count, end;

	seen[bus] = true;
	for (u8 device = 0; device < 32; device++)
		if (scan_function(bus, device, 0))
			for (u8 function = 1; function < 8; function++)
				scan_function(bus, device, function);
	end = pci_count;
	for (unsigned i = first; i < end; i++)
		if (pci_functions[i].header == HEADER_BRIDGE)
			scan_behind(&pci_functions[i]);
}

/* Bus 0, and with Linux's option pci=lastbus=N each further root bus up to N. */
void pci_scan(void)
{
	u64 last_bus = boot_option("pci=lastbus=", 0);

	for (unsigned bus = 0; bus <= last_bus && bus < BUS_COUNT; bus++)
		if (!seen[bus])
			scan_bus(bus);
}

const struct pci_function *pci_find_class(u32 class_code)
{
	for (unsigned i = 0; i < pci_count; i++)
		if (pci_functions[i].class_code == class_code)
			return &pci_functions[i];
	return NULL;
}

const struct pci_function *pci_find_id(u16 vendor, u16 id)
{
	for (unsigned i = 0; i < pci_count; i++)
		if (pci_functions[i].vendor == vendor && pci_functions[i].id == id)
			return &pci_functions[i];
	return NULL;
}

/* The offset of a capability in configuration space; 0 where the function has none. */
unsigned pci_capability(const struct pci_function *f, u8 id)
{
	unsigned at = config_read(f, CAPABILITIES) & 0xfc;

	for (unsigned left = 48; at >= 0x40 && left; left--) {
		u32 head = config_read(f, at);

		if ((head & 0xff) == id)
			return at;
		at = head >> 8 & 0xfc;
	}
	return 0;
}
