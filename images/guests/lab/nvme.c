/* An NVMe driver in the manner of Linux's: one admin queue pair, one I/O queue pair, completions polled by their phase bit. */
#include "lab.h"

enum { NVME_CLASS = 0x010802 };
enum { CAP = 0x00, CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30, DOORBELLS = 0x1000 };
enum { CC_ENABLE = 1, CC_IOSQES_64 = 6 << 16, CC_IOCQES_16 = 4 << 20, CSTS_READY = 1, CSTS_FATAL = 2 };
enum { CREATE_SQ = 1, CREATE_CQ = 5, IDENTIFY = 6, SET_FEATURES = 9 };
enum { IDENTIFY_NAMESPACE = 0, IDENTIFY_CONTROLLER = 1, FEATURE_QUEUES = 7, CONTIGUOUS = 1, NAMESPACE = 1 };
enum { ADMIN_DEPTH = 32, IO_DEPTH = 64, IO_TIMEOUT_S = 30, ADMIN_TIMEOUT_S = 60 };

struct submission {
	u8 opcode, flags;
	u16 id;
	u32 namespace;
	u64 reserved, metadata, prp1, prp2;
	u32 dw10, dw11, dw12, dw13, dw14, dw15;
};

struct completion {
	u32 result, reserved;
	u16 sq_head, sq_id, id, status; /* bit 0 of status is the phase */
};

struct queue {
	u16 id, depth, tail, head, next_id;
	u8 phase;
	struct submission *sq;
	volatile struct completion *cq;
};

struct nvme_state nvme;
static const struct pci_function *function;
static u64 registers, *prp_list;
static u8 *identify_page;
static struct queue admin, io;

static u64 cap(void) { return read32(registers + CAP) | (u64)read32(registers + CAP + 4) << 32; }

static void write64_halves(u64 address, u64 value)
{
	write32(address, value);
	write32(address + 4, value >> 32);
}

static u64 doorbell(const struct queue *q, unsigned completion)
{
	unsigned stride = 4u << (cap() >> 32 & 15);

	return registers + DOORBELLS + (2 * q->id + completion) * stride;
}

/* Pages once taken serve every later probe. */
static bool take_page(void *pointer_to_page)
{
	void **page = pointer_to_page;

	if (!*page)
		*page = page_alloc();
	return *page;
}

static bool take_pages(void)
{
	bool all = take_page(&admin.cq) & take_page(&admin.sq) & take_page(&identify_page)
		& take_page(&io.cq) & take_page(&io.sq) & take_page(&prp_list);

	for (unsigned i = 0; i < NVME_TRANSFER_PAGES; i++)
		all &= take_page(&nvme.pages[i]);
	return all;
}

static void queue_reset(struct queue *q, u16 id, u16 depth)
{
	memset(q->sq, 0, PAGE);
	memset((void *)q->cq, 0, PAGE);
	q->id = id;
	q->depth = depth;
	q->tail = q->head = q->next_id = 0;
	q->phase = 1;
}

/* Waiting for the ready bit to become what CC asks for. */
static bool ready_as_enabled(void *unused)
{
	(void)unused;
	return (read32(registers + CSTS) & CSTS_READY) == (read32(registers + CC) & CC_ENABLE);
}

static bool set_enable(u32 cc, const char *action)
{
	u64 half_seconds = (cap() >> 24 & 0xff) + 1;

	write32(registers + CC, cc);
	if (wait_until(ready_as_enabled, NULL, half_seconds * 500 * MS))
		return true;
	klog("nvme nvme0: Device not ready; aborting %s, CSTS=0x%x\n", action, read32(registers + CSTS));
	return false;
}

/* As Linux: a controller that is dead (fatal, or not ready) is not touched any more; it only loses the bus. */
static void disable(void)
{
	u32 status = read32(registers + CSTS);

	nvme.ready = false;
	if ((status & (CSTS_READY | CSTS_FATAL)) == CSTS_READY)
		set_enable(0, "shutdown");
	pci_command(function, PCI_COMMAND_MASTER, 0);
}

static bool completed(void *argument)
{
	const struct queue *q = argument;

	return (q->cq[q->head].status & 1) == q->phase;
}

static void submit(struct queue *q, struct submission *s)
{
	s->id = q->next_id++;
	memcpy(&q->sq[q->tail], s, sizeof(*s));
	q->tail = (q->tail + 1) % q->depth;
	write32(doorbell(q, 0), q->tail);
}

/* Carries one command out: NVME_OK, the command's status (positive), or NVME_TIMEOUT, after which the controller is off. */
static int carry_out(struct queue *q, struct submission *s, u64 seconds)
{
	int status;

	submit(q, s);
	if (!wait_until(completed, q, seconds * SECONDS)) {
		klog("nvme nvme0: I/O %u QID %u timeout, disable controller\n", s->id, q->id);
		disable();
		return NVME_TIMEOUT;
	}
	status = q->cq[q->head].status >> 1;
	if (++q->head == q->depth) {
		q->head = 0;
		q->phase ^= 1;
	}
	write32(doorbell(q, 1), q->head);
	return status & 0x7ff;
}

static int admin_command(struct submission s)
{
	return carry_out(&admin, &s, boot_option("nvme_core.admin_timeout=", ADMIN_TIMEOUT_S));
}

static bool identify_controller(void)
{
	int status = admin_command((struct submission){ .opcode = IDENTIFY, .prp1 = (u64)identify_page, .dw10 = IDENTIFY_CONTROLLER });
	unsigned mdts = identify_page[77]; /* a power of two in pages; 0: no limit */

	if (status) {
		klog("nvme nvme0: Identify Controller failed (%d)\n", status);
		return false;
	}
	nvme.transfer_pages = mdts && mdts < 3 ? 1u << mdts : NVME_TRANSFER_PAGES;
	return true;
}

static bool identify_namespace(void)
{
	int status = admin_command((struct submission){
		.opcode = IDENTIFY, .namespace = NAMESPACE, .prp1 = (u64)identify_page, .dw10 = IDENTIFY_NAMESPACE });
	unsigned format = identify_page[26] & 15;

	if (status) {
		klog("nvme nvme0: Identify Namespace failed (%d)\n", status);
		return false;
	}
	nvme.blocks = read64((u64)identify_page);
	nvme.block_bytes = 1u << (identify_page[128 + 4 * format + 2] & 31);
	return true;
}

static bool create_queues(void)
{
	int status = admin_command((struct submission){ .opcode = SET_FEATURES, .dw10 = FEATURE_QUEUES, .dw11 = 0 });
	u32 size = (io.depth - 1u) << 16 | io.id;

	if (!status)
		status = admin_command((struct submission){ .opcode = CREATE_CQ, .prp1 = (u64)io.cq, .dw10 = size, .dw11 = CONTIGUOUS });
	if (!status)
		status = admin_command((struct submission){
			.opcode = CREATE_SQ, .prp1 = (u64)io.sq, .dw10 = size, .dw11 = (u32)io.id << 16 | CONTIGUOUS });
	if (status)
		klog("nvme nvme0: I/O queues failed (%d)\n", status);
	return !status;
}

/* The handshake of NVMe 1.4, section 7.6.1. */
static int enable(void)
{
	unsigned entries = (cap() & 0xffff) + 1;

	if (read32(registers + CSTS) == ~0u)
		return NVME_ENODEV;
	if (!take_pages())
		return NVME_ENOMEM;
	if (!set_enable(0, "reset"))
		return NVME_ENODEV;
	queue_reset(&admin, 0, ADMIN_DEPTH);
	queue_reset(&io, 1, entries < IO_DEPTH ? entries : IO_DEPTH);
	write32(registers + AQA, (ADMIN_DEPTH - 1) << 16 | (ADMIN_DEPTH - 1));
	write64_halves(registers + ASQ, (u64)admin.sq);
	write64_halves(registers + ACQ, (u64)admin.cq);
	return set_enable(CC_IOCQES_16 | CC_IOSQES_64 | CC_ENABLE, "initialisation") ? NVME_OK : NVME_ENODEV;
}

static int start(void)
{
	const struct bar *bar = &function->bars[0];
	int status;

	nvme.ready = false;
	if (bar->io || !bar->address || bar->size < 2 * PAGE || bar->address + bar->size > cpu_reach)
		return NVME_ENOMEM;
	registers = bar->address;
	pci_command(function, 0, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	status = enable();
	if (!status && !(identify_controller() && create_queues() && identify_namespace()))
		status = NVME_EIO;
	nvme.ready = !status;
	return status;
}

bool nvme_probe(void)
{
	int status;

	function = pci_find_class(NVME_CLASS);
	if (!function) {
		klog("nvme: no controller\n");
		return false;
	}
	klog("nvme nvme0: pci function 0000:%02x:%02x.%x\n", function->bus, function->device, function->function);
	status = start();
	if (status)
		klog("nvme nvme0: Removing after probe failure status: %d\n", status);
	else
		klog("nvme nvme0: 1/0/0 default/read/poll queues\n");
	return !status;
}

/* The second pointer of a command: nothing, the second page, or a list of all but the first. */
static u64 second_prp(unsigned pages)
{
	for (unsigned i = 1; i < pages; i++)
		prp_list[i - 1] = (u64)nvme.pages[i];
	return pages < 2 ? 0 : pages == 2 ? (u64)nvme.pages[1] : (u64)prp_list;
}

/* Reads or writes blocks by way of nvme.pages, or flushes; tells what fails. */
bool nvme_io(u8 opcode, u64 lba, unsigned blocks)
{
	static const char *const names[] = { "Flush", "Write", "Read" };
	struct submission s = { .opcode = opcode, .namespace = NAMESPACE };
	int status;

	if (opcode != NVME_FLUSH) {
		s.prp1 = (u64)nvme.pages[0];
		s.prp2 = second_prp((blocks * nvme.block_bytes + PAGE - 1) / PAGE);
		s.dw10 = lba;
		s.dw11 = lba >> 32;
		s.dw12 = blocks - 1;
	}
	status = carry_out(&io, &s, IO_TIMEOUT_S);
	if (status > 0)
		klog("nvme0n1: %s(0x%x) @ LBA %lu, %u blocks, I/O error (sct 0x%x / sc 0x%x)\n",
		     names[opcode], opcode, lba, blocks, status >> 8, status & 0xff);
	return status == NVME_OK;
}

void nvme_print(void)
{
	if (!function || !registers) {
		print("nvme: no controller\n");
		return;
	}
	print("nvme0: %s, pci function 0000:%02x:%02x.%x, registers at 0x%lx\n", nvme.ready ? "in use" : "not in use",
	      function->bus, function->device, function->function, registers);
	print("nvme0: CAP 0x%016lx, CC 0x%08x, CSTS 0x%x, AQA 0x%08x, ASQ 0x%016lx, ACQ 0x%016lx\n", cap(), read32(registers + CC),
	      read32(registers + CSTS), read32(registers + AQA), read64(registers + ASQ), read64(registers + ACQ));
	if (nvme.ready)
		print("nvme0n1: %lu blocks of %u bytes\n", nvme.blocks, nvme.block_bytes);
}

/* --- the drive told to reach any memory: what a driver never does */

static bool one_block(u8 opcode, u64 lba, u64 address)
{
	struct submission s = {
		.opcode = opcode, .namespace = NAMESPACE, .prp1 = address, .prp2 = (address & ~(PAGE - 1)) + PAGE,
		.dw10 = lba, .dw11 = lba >> 32,
	};

	if (address % PAGE + nvme.block_bytes <= PAGE)
		s.prp2 = 0;
	return nvme.ready && carry_out(&io, &s, IO_TIMEOUT_S) == NVME_OK;
}

bool nvme_dump(u64 address, u64 lba) { return one_block(NVME_WRITE, lba, address); }
bool nvme_load(u64 lba, u64 address) { return one_block(NVME_READ, lba, address); }

bool nvme_present(void) { return nvme.ready && nvme.block_bytes == 512 && nvme.blocks > 2; }

u16 nvme_source(void)
{
	return function->bus << 8 | function->device << 3 | function->function;
}

bool nvme_block(u64 lba, void *data, unsigned length)
{
	if (!nvme_load(lba, (u64)nvme.pages[0]))
		return false;
	memcpy(data, nvme.pages[0], length);
	return true;
}

/* A block of memory goes to the disk and comes back to where the CPU can read it. */
bool nvme_fetch(u64 address, void *data, unsigned length)
{
	u64 start = address & ~3ul;

	return length + 3 <= nvme.block_bytes && nvme_dump(start, nvme.blocks - 2) && nvme_block(nvme.blocks - 2, nvme.pages[0], 512)
		&& memcpy(data, nvme.pages[0] + (address - start), length);
}

/* The block that ends with the data, read, patched, written: what lies before is written back as it was. */
bool nvme_store(u64 address, const void *data, unsigned length)
{
	u64 start = (address + length - 512 + 3) & ~3ul;
	u8 *block = nvme.pages[0];

	if (length + 3 > 512 || !nvme_dump(start, nvme.blocks - 2) || !nvme_block(nvme.blocks - 2, block, 512))
		return false;
	memcpy(block + (address - start), data, length);
	return nvme_dump((u64)block, nvme.blocks - 2) && nvme_load(nvme.blocks - 2, start);
}

enum { MSIX = 0x11, MSIX_ENABLE = 1u << 31 };

/* An interrupt message of the drive's own, sent by the completion of an Identify command. */
bool nvme_message(u64 address, u32 data)
{
	unsigned at = pci_capability(function, MSIX);
	u64 table;
	u32 control;

	if (!at || !nvme.ready)
		return false;
	table = registers + (pci_config_read(function, at + 4) & ~7u);
	control = pci_config_read(function, at);
	write64_halves(table, address);
	write32(table + 8, data);
	write32(table + 12, 0);
	pci_config_write(function, at, control | MSIX_ENABLE);
	admin_command((struct submission){ .opcode = IDENTIFY, .prp1 = (u64)identify_page, .dw10 = IDENTIFY_CONTROLLER });
	pci_config_write(function, at, control & ~MSIX_ENABLE);
	return true;
}
