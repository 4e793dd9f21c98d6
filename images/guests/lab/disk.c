/*
 * The content of the lab's disk, from which each block can be checked alone.  512 bytes, little-endian:
 *
 *   0   "HVLABBLK"     8  LBA     16  seed     24  60 words of xorshift64*     504  FNV-1a 64 of the bytes before
 */
#include "lab.h"

enum { WORDS = 60, TESTED = 64, PER_PAGE = PAGE / BLOCK };

struct block {
	char signature[8];
	u64 lba, seed, words[WORDS], checksum;
};

static u64 next_word(u64 *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1d;
}

static u64 fnv1a(const u8 *data, size_t size)
{
	u64 hash = 0xcbf29ce484222325;

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ data[i]) * 0x100000001b3;
	return hash;
}

static void make(struct block *b, u64 lba, u64 seed)
{
	u64 state = (seed ^ lba * 0x9e3779b97f4a7c15) | 1;

	memcpy(b->signature, "HVLABBLK", 8);
	b->lba = lba;
	b->seed = seed;
	for (unsigned i = 0; i < WORDS; i++)
		b->words[i] = next_word(&state);
	b->checksum = fnv1a((const u8 *)b, offsetof(struct block, checksum));
}

static bool is_signed(const struct block *b)
{
	return !memcmp(b->signature, "HVLABBLK", 8);
}

/* What is wrong with the block; NULL where nothing is. */
static const char *wrong(const struct block *b, u64 lba, u64 seed)
{
	struct block good;

	if (!is_signed(b))
		return "no lab signature";
	if (b->lba != lba)
		return "it is another block's content";
	if (b->seed != seed)
		return "its seed is another disk's";
	make(&good, lba, seed);
	return memcmp(b, &good, sizeof(good)) ? "its content is damaged" : NULL;
}

static const struct block *in_buffer(unsigned index)
{
	return (const struct block *)(nvme.pages[index / PER_PAGE] + index % PER_PAGE * BLOCK);
}

static bool check_buffer(u64 lba, unsigned blocks, u64 seed)
{
	for (unsigned i = 0; i < blocks; i++) {
		const char *what = wrong(in_buffer(i), lba + i, seed);

		if (what) {
			klog(" nvme0n1: block %lu is wrong: %s\n", lba + i, what);
			return false;
		}
	}
	return true;
}

/* The first blocks: by one page, by two, by a list of pages, as the controller allows. */
static bool read_first(u64 seed)
{
	static const unsigned pages[] = { 1, 2, NVME_TRANSFER_PAGES };
	unsigned lba = 0;

	for (unsigned i = 0; lba < TESTED; i++) {
		unsigned most = pages[i < 2 ? i : 2], n;

		n = (most < nvme.transfer_pages ? most : nvme.transfer_pages) * PER_PAGE;
		n = n < TESTED - lba ? n : TESTED - lba;
		if (!nvme_io(NVME_READ, lba, n) || !check_buffer(lba, n, seed))
			return false;
		lba += n;
	}
	klog(" nvme0n1: %u blocks read, checked\n", TESTED);
	return true;
}

/* The last block gets the content of another seed, which is read back; the seed changes with each start. */
static bool write_last(void)
{
	u64 lba = nvme.blocks - 1, seed;
	struct block *b = (struct block *)nvme.pages[0];

	if (!nvme_io(NVME_READ, lba, 1))
		return false;
	seed = is_signed(b) ? b->seed + 1 : 0;
	make(b, lba, seed);
	if (!nvme_io(NVME_WRITE, lba, 1) || !nvme_io(NVME_FLUSH, 0, 0))
		return false;
	memset(b, 0, sizeof(*b));
	if (!nvme_io(NVME_READ, lba, 1) || !check_buffer(lba, 1, seed))
		return false;
	klog(" nvme0n1: block %lu written, flushed, read back\n", lba);
	return true;
}

static bool check(void)
{
	klog(" nvme0n1: %lu blocks of %u bytes\n", nvme.blocks, nvme.block_bytes);
	if (nvme.block_bytes != BLOCK || nvme.blocks <= TESTED) {
		klog(" nvme0n1: neither size is the lab's, not checked\n");
		return true;
	}
	if (!nvme_io(NVME_READ, 0, 1))
		return false;
	if (!is_signed(in_buffer(0))) {
		klog(" nvme0n1: no lab signature, not checked\n");
		return true;
	}
	return read_first(in_buffer(0)->seed) && write_last();
}

/* A disk that fails is not used any more. */
void disk_start(void)
{
	if (check())
		return;
	nvme.ready = false;
	klog(" nvme0n1: disk not used\n");
}

void disk_show(u64 lba)
{
	const struct block *b = in_buffer(0);
	const char *what;

	if (!nvme.ready) {
		print("nvme: the disk is not in use\n");
	} else if (lba >= nvme.blocks) {
		print("nvme: the disk ends at block %lu\n", nvme.blocks - 1);
	} else if (nvme.block_bytes > PAGE) {
		print("nvme: blocks of %u bytes exceed a page\n", nvme.block_bytes);
	} else if (nvme_io(NVME_READ, lba, 1)) {
		hexdump(lba * nvme.block_bytes, b, 64);
		what = wrong(b, lba, b->seed);
		print("nvme: block %lu: %s\n", lba, what ? what : "checked");
	}
}
