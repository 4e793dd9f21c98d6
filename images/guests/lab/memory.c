/* Pages of RAM, handed out from the top of the highest usable memory downwards, as Linux does; none is taken back. */
#include "lab.h"

extern char image_start[], image_end[];

static u64 limit = FOREVER; /* every page above was looked at */

static u64 end_of(const struct e820_entry *e)
{
	u64 end;

	return __builtin_add_overflow(e->base, e->length, &end) ? FOREVER : end;
}

/* The highest whole page below `limit` that an entry calls usable; 0 where none is left. */
static u64 highest_usable(void)
{
	u64 best = 0;

	for (unsigned i = 0; i < boot.entries; i++) {
		const struct e820_entry *e = &boot.e820[i];
		u64 end = (end_of(e) < limit ? end_of(e) : limit) & ~(PAGE - 1);

		if (e->type == E820_USABLE && end >= PAGE && end - PAGE >= e->base && end - PAGE > best)
			best = end - PAGE;
	}
	return best;
}

/* Whether [start, end) and the page overlap. */
static bool touches(u64 page, u64 start, u64 end)
{
	return page < end && start < page + PAGE;
}

/* Whether the page is somebody's; then `limit` goes below all that is theirs. */
static bool taken(u64 page)
{
	u64 start = touches(page, (u64)image_start, (u64)image_end) ? (u64)image_start : FOREVER;

	for (unsigned i = 0; i < boot.entries; i++) {
		const struct e820_entry *e = &boot.e820[i];

		if (e->type != E820_USABLE && touches(page, e->base, end_of(e)) && e->base < start)
			start = e->base;
	}
	if (start < limit)
		limit = start;
	return start != FOREVER;
}

/* A page of zeros; NULL where no memory is left above the first MiB. */
void *page_alloc(void)
{
	u64 page;

	if (limit > cpu_reach)
		limit = cpu_reach;
	do {
		page = highest_usable();
		limit = page;
	} while (page && taken(page));
	return page >= 0x100000 ? memset((void *)page, 0, PAGE) : NULL;
}
