/* The yardstick: domain 0 as a plain C program builds it, one page at a time from the root.
 *
 *   domain LAST_FRAME HOLE_FIRST_FRAME HOLE_LAST_FRAME LEVELS REPEATS
 *
 * maps every frame 0..LAST_FRAME to itself with 4 KiB leaves, read and write, but with no access in the hole (both ends included), with
 * tables from a heap of 512 MiB that is fresh memory in each repeat, as a hypervisor's is after power-on.  Then, untimed, it reads the
 * tables back as runs of equal permission and offset.  Prints one line of JSON: seconds of each repeat, table pages and runs.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE 4096ull
#define HEAP (512ull << 20)
#define ADDRESS 0x000ffffffffff000ull
#define RW 3ull

struct run {
    uint64_t start, end, perm, offset;
};

static uint8_t *heap;
static uint64_t used; /* bytes; table addresses are offsets in the heap, the root is at PAGE so that 0 stays "none" */

static uint64_t *table(uint64_t address)
{
    return (uint64_t *)(heap + address);
}

static uint64_t allocate(void)
{
    if (used + PAGE > HEAP) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    used += PAGE;
    return used - PAGE;
}

static void map_page(uint64_t root, int levels, uint64_t iova, uint64_t address, uint64_t perm)
{
    uint64_t *entries = table(root);
    for (int level = levels; level > 1; level--) {
        uint64_t *entry = &entries[iova >> (12 + 9 * (level - 1)) & 511];
        if (!(*entry & RW))
            *entry = allocate() | RW;
        entries = table(*entry & ADDRESS);
    }
    entries[iova >> 12 & 511] = address | perm;
}

static uint64_t build(uint64_t last, uint64_t hole_first, uint64_t hole_last, int levels)
{
    uint64_t root = allocate();
    for (uint64_t frame = 0; frame <= last; frame++)
        map_page(root, levels, frame * PAGE, frame * PAGE, frame >= hole_first && frame <= hole_last ? 0 : RW);
    return root;
}

static void extend(struct run *runs, uint64_t *count, uint64_t start, uint64_t size, uint64_t perm, uint64_t offset)
{
    struct run *last = *count ? &runs[*count - 1] : NULL;
    if (last && last->end == start && last->perm == perm && last->offset == offset)
        last->end += size;
    else
        runs[(*count)++] = (struct run){start, start + size, perm, offset};
}

static void decode(uint64_t address, int level, uint64_t iova, uint64_t perm, struct run *runs, uint64_t *count)
{
    uint64_t *entries = table(address), span = PAGE << (9 * (level - 1));
    for (int i = 0; i < 512; i++, iova += span) {
        if (!entries[i])
            continue;
        uint64_t allowed = perm & entries[i], target = entries[i] & ADDRESS;
        if (level > 1 && (entries[i] & RW))
            decode(target, level - 1, iova, allowed, runs, count);
        else
            extend(runs, count, iova, span, allowed, target - iova);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: domain LAST_FRAME HOLE_FIRST_FRAME HOLE_LAST_FRAME LEVELS REPEATS\n");
        return 2;
    }
    uint64_t last = strtoull(argv[1], NULL, 0), hole_first = strtoull(argv[2], NULL, 0), hole_last = strtoull(argv[3], NULL, 0);
    int levels = atoi(argv[4]), repeats = atoi(argv[5]);
    static struct run runs[1 << 16];
    uint64_t count = 0;
    double building[repeats];
    for (int i = 0; i < repeats; i++) {
        heap = mmap(NULL, HEAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (heap == MAP_FAILED) {
            perror("mmap");
            return 1;
        }
        used = PAGE;
        count = 0;
        double t0 = now();
        uint64_t root = build(last, hole_first, hole_last, levels);
        building[i] = now() - t0;
        decode(root, levels, 0, RW, runs, &count);
        if (i + 1 < repeats)
            munmap(heap, HEAP);
    }
    printf("{\"table_pages\": %llu, \"runs\": [", (unsigned long long)(used / PAGE - 1));
    for (uint64_t i = 0; i < count; i++)
        printf("%s[%llu, %llu, %llu]", i ? ", " : "", (unsigned long long)runs[i].start, (unsigned long long)runs[i].end, (unsigned long long)runs[i].perm);
    printf("], \"build\": [");
    for (int i = 0; i < repeats; i++)
        printf("%s%.6f", i ? ", " : "", building[i]);
    printf("]}\n");
    return 0;
}
