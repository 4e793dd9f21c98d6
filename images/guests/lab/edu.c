/* DMA on request, by QEMU's teaching device `edu` (docs/specs/edu.txt): memory -> its buffer -> memory. */
#include "lab.h"

enum { VENDOR = 0x1234, DEVICE = 0x11e8 };
enum { SOURCE = 0x80, DESTINATION = 0x88, COUNT = 0x90, COMMAND = 0x98, BUFFER = 0x40000 };
enum { START = 1, FROM_EDU = 2 };
enum { FILLER = 0x5a, CHUNK = 2048, TIMEOUT_S = 1 }; /* QEMU's edu refuses transfers that touch the last byte of its 4096 */

static u8 bounce[PAGE] __attribute__((aligned(4096))); /* in the image, so below 4 GiB */
static u64 registers;

static bool idle(void *unused)
{
	(void)unused;
	return !(read32(registers + COMMAND) & START);
}

bool edu_present(void)
{
	const struct pci_function *f = pci_find_id(VENDOR, DEVICE);

	if (!f || !f->bars[0].address || f->bars[0].address >= cpu_reach)
		return false;
	registers = f->bars[0].address;
	pci_command(f, 0, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	return true;
}

static bool find(void)
{
	if (edu_present())
		return true;
	print("dma: no edu device (1234:11e8)\n");
	return false;
}

u16 edu_source(void)
{
	const struct pci_function *f = pci_find_id(VENDOR, DEVICE);

	return f ? f->bus << 8 | f->device << 3 | f->function : 0;
}

static bool transfer(u64 source, u64 destination, unsigned length, unsigned direction)
{
	write64(registers + SOURCE, source);
	write64(registers + DESTINATION, destination);
	write64(registers + COUNT, length);
	write64(registers + COMMAND, START | direction);
	if (wait_until(idle, NULL, TIMEOUT_S * SECONDS))
		return true;
	print("dma: edu does not finish, command register 0x%x\n", read32(registers + COMMAND));
	return false;
}

static bool to_edu(u64 address, unsigned length) { return transfer(address, BUFFER, length, 0); }
static bool from_edu(u64 address, unsigned length) { return transfer(BUFFER, address, length, FROM_EDU); }

/*
 * One chunk to bounce[0..length).  edu's buffer holds `filler` before, which stays where the read of `address` brings nothing; the bounce
 * page holds its complement, which stays where edu does not reach the page.
 */
static bool read_chunk(u64 address, unsigned length, u8 filler)
{
	memset(bounce, filler, length);
	if (!to_edu((u64)bounce, length))
		return false;
	memset(bounce, ~filler, length);
	return to_edu(address, length) && from_edu((u64)bounce, length);
}

/* Reads twice, with filler and complement exchanged: bytes that come out the same are memory's. */
static bool read_known(u64 address, unsigned length, u8 *data, unsigned *arrived)
{
	if (!read_chunk(address, length, FILLER))
		return false;
	memcpy(data, bounce, length);
	if (!read_chunk(address, length, (u8)~FILLER))
		return false;
	if (data[0] == (u8)~FILLER && bounce[0] == FILLER) {
		print("dma: edu does not reach the bounce page at 0x%lx\n", (u64)bounce);
		return false;
	}
	*arrived = 0;
	while (*arrived < length && data[*arrived] == bounce[*arrived])
		++*arrived;
	return true;
}

void edu_read(u64 address, unsigned length)
{
	static u8 data[PAGE];
	unsigned done = 0, arrived, size;

	if (!find())
		return;
	do {
		size = length - done < CHUNK ? length - done : CHUNK;
		if (!read_known(address + done, size, data + done, &arrived))
			return;
		done += arrived;
	} while (arrived == size && done < length);
	hexdump(address, data, done);
	if (!done)
		print("dma: no data arrived\n");
	else if (done < length)
		print("dma: no data arrived from 0x%lx on\n", address + done);
}

void edu_write(u64 address, unsigned length, u64 pattern)
{
	if (!find())
		return;
	for (unsigned i = 0; i < PAGE; i += sizeof(pattern))
		memcpy(bounce + i, &pattern, sizeof(pattern));
	for (unsigned done = 0; done < length; done += CHUNK) {
		unsigned size = length - done < CHUNK ? length - done : CHUNK;

		if (!to_edu((u64)bounce, size) || !from_edu(address + done, size))
			return;
	}
	print("dma: %u bytes sent to 0x%lx\n", length, address);
}

bool edu_fetch(u64 address, void *data, unsigned length)
{
	unsigned arrived;

	return length <= CHUNK && read_known(address, length, data, &arrived) && arrived == length;
}

bool edu_store(u64 address, const void *data, unsigned length)
{
	if (length > CHUNK)
		return false;
	memcpy(bounce, data, length);
	return to_edu((u64)bounce, length) && from_edu(address, length);
}

bool edu_buffer(void *data, unsigned length)
{
	if (length > CHUNK || !from_edu((u64)bounce, length))
		return false;
	memcpy(data, bounce, length);
	return true;
}
