/* The yardstick of permission runs: every entry of every table, one after another, from the root down.
 *
 * Built as a shared library and called on the bytes that hvlab's own scan reads.  Of each entry it asks the same: is it present, are
 * reserved bits set, is it a page or a table, is that table in memory, what does it grant with the levels above, does it continue the
 * last run.
 */
#include <stdint.h>

#define PAGE 4096ull
#define ENTRIES 512
#define ADDRESS 0x000ffffffffff000ull
#define RW 3ull
#define SUPERPAGE 0x80ull

struct run {
    uint64_t start, end, rights, offset;
};

/* `reserved[level][leaf]` are bits that must be zero, `leaves` the set of levels with leaves; `runs` has room for `most`. */
struct scan {
    const uint8_t *memory;
    uint64_t ram_end, reserved[7][2], leaves;
    struct run *runs;
    uint64_t most, count, tables, refused, lost;
};

static void extend(struct scan *s, uint64_t start, uint64_t end, uint64_t rights, uint64_t offset)
{
    struct run *last = s->runs + s->count - 1;
    if (s->count && last->end == start && last->rights == rights && last->offset == offset)
        last->end = end;
    else if (s->count < s->most)
        s->runs[s->count++] = (struct run){start, end, rights, offset};
}

static void scan_table(struct scan *s, uint64_t address, int level, uint64_t start, uint64_t rights)
{
    if (address + PAGE > s->ram_end) {
        s->lost++;
        return;
    }
    const uint64_t *entries = (const uint64_t *)(s->memory + address), span = PAGE << 9 * (level - 1);
    s->tables++;
    for (int i = 0; i < ENTRIES; i++, start += span) {
        uint64_t entry = entries[i], own = entry & RW, target = entry & ADDRESS;
        if (!own && !target)
            continue;
        int leaf = level == 1 || (entry & SUPERPAGE && s->leaves >> level & 1);
        if (own && entry & s->reserved[level][leaf]) {
            own = 0;
            s->refused++;
        }
        if (own && !leaf)
            scan_table(s, target, level - 1, start, rights & own);
        else
            extend(s, start, start + span, rights & own, (leaf ? target & -span : target) - start);
    }
}

void scan_all(struct scan *s, uint64_t root, int levels)
{
    s->count = s->tables = s->refused = s->lost = 0;
    scan_table(s, root, levels, 0, RW);
}
