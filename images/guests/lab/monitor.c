/* The monitor on the serial line. */
#include "lab.h"

enum { LINE = 200, WORDS = 6, MOST_DUMPED = 4096 };
#define COMMAND_PATIENCE (4500 * MS)
#define PATTERN 0x414d4442414c5648ull /* "HVLABDMA" */

struct command {
	const char *name, *arguments, *help;
	unsigned least, most; /* arguments */
	void (*run)(unsigned count, char **words);
};

static const struct command commands[];

/* The number `word`; says so where it is none. */
static bool number(const char *word, u64 *value)
{
	if (parse_number(word, value))
		return true;
	print("lab: %s is not a number (use 4096 or 0x1000)\n", word);
	return false;
}

/* As number(), but within low..high. */
static bool number_within(const char *word, u64 low, u64 high, u64 *value)
{
	if (!number(word, value))
		return false;
	if (*value >= low && *value <= high)
		return true;
	print("lab: %s is not within %lu..%lu\n", word, low, high);
	return false;
}

static bool width(const char *word, u64 most, u64 *value)
{
	if (!number_within(word, 1, most, value))
		return false;
	if (!(*value & (*value - 1)))
		return true;
	print("lab: a width is 1, 2, 4 or 8 bytes\n");
	return false;
}

static void help(unsigned count, char **words)
{
	(void)count, (void)words;
	for (const struct command *c = commands; c->name; c++)
		print("%s%s%s - %s\n", c->name, *c->arguments ? " " : "", c->arguments, c->help);
}

static void e820(unsigned count, char **words)
{
	(void)count, (void)words;
	boot_print_e820(print);
}

static void lspci(unsigned count, char **words)
{
	(void)count, (void)words;
	for (const struct pci_function *f = pci_functions; f < pci_functions + pci_count; f++)
		print("%02x:%02x.%x %04x: %04x:%04x (rev %02x)\n", f->bus, f->device, f->function, f->class_code >> 8, f->vendor, f->id,
		      f->revision);
}

static void acpi(unsigned count, char **words)
{
	(void)count, (void)words;
	acpi_print();
}

/* By 16 bytes at a time, so that what can be read is shown. */
static void peek(unsigned count, char **words)
{
	u64 address, length = 16, size;
	u8 data[16];

	if (!number(words[1], &address) || (count > 2 && !number_within(words[2], 1, MOST_DUMPED, &length)))
		return;
	for (u64 i = 0; i < length; i += size) {
		size = length - i < 16 ? length - i : 16;
		if (!try_copy(data, address + i, size)) {
			print("peek: %s at 0x%lx\n", fault_name(), fault.address ? fault.address : address + i);
			return;
		}
		hexdump(address + i, data, size);
	}
}

static void poke(unsigned count, char **words)
{
	u64 address, value, bytes = 4;

	if (!number(words[1], &address) || !number(words[2], &value) || (count > 3 && !width(words[3], 8, &bytes)))
		return;
	if (bytes < 8 && value >> 8 * bytes)
		print("poke: 0x%lx does not fit %lu bytes\n", value, bytes);
	else if (!try_write(address, bytes, value))
		print("poke: %s at 0x%lx\n", fault_name(), fault.address ? fault.address : address);
}

static void dma(unsigned count, char **words)
{
	u64 address, length, pattern = PATTERN;

	if (!number(words[2], &address) || !number_within(words[3], 1, PAGE, &length) || (count > 4 && !number(words[4], &pattern)))
		return;
	if (equal(words[1], "r"))
		edu_read(address, length);
	else if (equal(words[1], "w"))
		edu_write(address, length, pattern);
	else
		print("dma: r (read) or w (write), not %s\n", words[1]);
}

/* A block of memory to the disk, or a block of the disk to any memory. */
static void nvme_transfer(char **words)
{
	bool dump = equal(words[1], "dump");
	u64 address, lba;

	if (!number(words[dump ? 2 : 3], &address) || !number(words[dump ? 3 : 2], &lba))
		return;
	if (!nvme_present() || lba >= nvme.blocks)
		print("nvme: %s\n", nvme_present() ? "there is no such block" : "the disk is not in use");
	else if (dump ? nvme_dump(address, lba) : nvme_load(lba, address))
		print("nvme: block %lu %s 0x%lx\n", lba, dump ? "written from" : "read to", address);
	else
		print("nvme: no data transferred\n");
}

static void nvme_command(unsigned count, char **words)
{
	u64 lba;

	if (count == 1)
		nvme_print();
	else if (count == 2 && equal(words[1], "probe")) {
		if (nvme_probe())
			disk_start();
	} else if (count == 3 && equal(words[1], "read")) {
		if (number(words[2], &lba))
			disk_show(lba);
	} else if (count == 4 && (equal(words[1], "dump") || equal(words[1], "load")))
		nvme_transfer(words);
	else
		print("nvme: nothing, read LBA, probe, dump ADDR LBA, or load LBA ADDR\n");
}

static void attack_command(unsigned count, char **words)
{
	attack(words[1], count > 2 ? words[2] : NULL);
}

static void iommu(unsigned count, char **words)
{
	if (count == 1)
		iommu_print();
	else if (equal(words[1], "on") && (count == 2 || equal(words[2], "norms")))
		iommu_on(count == 2);
	else if (equal(words[1], "off") && count == 2)
		iommu_off();
	else
		print("iommu: nothing, on, on norms (without the RMRRs), or off\n");
}

static void vmmcall(unsigned count, char **words)
{
	u64 rax;

	(void)count;
	if (!number(words[1], &rax))
		return;
	if (try_vmmcall(&rax))
		print("vmmcall: 0x%lx\n", rax);
	else
		print("vmmcall: %s, no hypervisor answers\n", fault_name());
}

static void cpuid_command(unsigned count, char **words)
{
	u64 leaf, subleaf = 0;
	struct cpuid r;

	if (!number_within(words[1], 0, ~0u, &leaf) || (count > 2 && !number_within(words[2], 0, ~0u, &subleaf)))
		return;
	r = cpuid(leaf, subleaf);
	print("cpuid: eax 0x%08x ebx 0x%08x ecx 0x%08x edx 0x%08x\n", r.eax, r.ebx, r.ecx, r.edx);
}

/* While the prompt waits the clock is not read, so multiples of 4.7 s of that are not counted. */
static void time(unsigned count, char **words)
{
	u64 now = time_us();

	(void)count, (void)words;
	print("time: %lu.%06lu s\n", now / SECONDS, now % SECONDS);
}

static void in(unsigned count, char **words)
{
	u64 port, bytes = 1;

	if (!number_within(words[1], 0, 0xffff, &port) || (count > 2 && !width(words[2], 4, &bytes)))
		return;
	print("in: 0x%x\n", bytes == 1 ? inb(port) : bytes == 2 ? inw(port) : inl(port));
}

static void out(unsigned count, char **words)
{
	u64 port, value, bytes = 1;

	if (!number_within(words[1], 0, 0xffff, &port) || !number(words[2], &value) || (count > 3 && !width(words[3], 4, &bytes)))
		return;
	if (value >> 8 * bytes)
		print("out: 0x%lx does not fit %lu bytes\n", value, bytes);
	else if (bytes == 1)
		outb(port, value);
	else if (bytes == 2)
		outw(port, value);
	else
		outl(port, value);
}

static void crash(unsigned count, char **words)
{
	(void)count, (void)words;
	__asm__ volatile("ud2");
}

static void reboot(unsigned count, char **words)
{
	(void)count, (void)words;
	outb(0xcf9, 0x06);
	outb(0x64, 0xfe);
	halt();
}

static const struct command commands[] = {
	{ "help", "", "this list", 0, 0, help },
	{ "e820", "", "the memory map that the loader gave", 0, 0, e820 },
	{ "lspci", "", "the PCI functions", 0, 0, lspci },
	{ "acpi", "", "the firmware's ACPI tables", 0, 0, acpi },
	{ "peek", "ADDR [LEN]", "shows memory as the CPU reads it", 1, 2, peek },
	{ "poke", "ADDR VALUE [WIDTH]", "writes memory (4 bytes, or WIDTH)", 2, 3, poke },
	{ "dma", "r|w ADDR LEN [PATTERN]", "reads or writes memory by the device edu", 3, 4, dma },
	{ "nvme", "[read LBA|probe|dump ADDR LBA|load LBA ADDR]",
	  "the controller, a block, the driver's start again, or a block from or to any memory", 0, 3, nvme_command },
	{ "attack", "NAME [edu|nvme]", "tries to get at the hypervisor by a device", 1, 2, attack_command },
	{ "iommu", "[on [norms]|off]", "drives the remapping units that the DMAR names", 0, 2, iommu },
	{ "vmmcall", "N", "calls the hypervisor with RAX = N", 1, 1, vmmcall },
	{ "cpuid", "LEAF [SUBLEAF]", "what the CPU says of itself", 1, 2, cpuid_command },
	{ "time", "", "seconds since the start", 0, 0, time },
	{ "in", "PORT [WIDTH]", "reads a port", 1, 2, in },
	{ "out", "PORT VALUE [WIDTH]", "writes a port", 2, 3, out },
	{ "crash", "", "executes an invalid instruction", 0, 0, crash },
	{ "reboot", "", "resets the machine", 0, 0, reboot },
	{ NULL, NULL, NULL, 0, 0, NULL },
};

/* A line without its end, echoed.  CR, LF and CR LF all end one. */
static void read_line(char *line)
{
	static char ended_by;
	size_t size = 0;

	for (;;) {
		char c = console_read(), before = ended_by;

		ended_by = 0;
		if (c == '\n' && before == '\r')
			continue;
		if (c == '\r' || c == '\n') {
			ended_by = c;
			line[size] = 0;
			print("\n");
			return;
		}
		if ((c == '\b' || c == 0x7f) && size) {
			size--;
			print("\b \b");
		} else if (c >= ' ' && c < 0x7f && size < LINE) {
			line[size++] = c;
			print("%c", c);
		}
	}
}

static unsigned split(char *line, char **words)
{
	unsigned count = 0;

	for (char *at = line; *at && count < WORDS; count++) {
		while (*at == ' ')
			*at++ = 0;
		if (!*at)
			break;
		words[count] = at;
		while (*at && *at != ' ')
			at++;
	}
	return count;
}

static void run(unsigned count, char **words)
{
	for (const struct command *c = commands; c->name; c++) {
		if (!equal(words[0], c->name))
			continue;
		if (count - 1 < c->least || count - 1 > c->most)
			print("usage: %s %s\n", c->name, c->arguments);
		else
			c->run(count, words);
		return;
	}
	print("lab: no command %s (try: help)\n", words[0]);
}

_Noreturn void monitor(void)
{
	char line[LINE + 1], *words[WORDS];

	for (;;) {
		unsigned count;

		print("lab> ");
		read_line(line);
		count = split(line, words);
		time_patience(COMMAND_PATIENCE);
		if (count)
			run(count, words);
	}
}
