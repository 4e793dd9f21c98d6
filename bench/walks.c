/* The yardstick of translations: one request after another through root, context and second-level tables, as a unit in legacy mode does.
 *
 * Built as a shared library and called on the bytes that hvlab's own unit walks.  Every check is made, in the hardware's order; nothing is
 * remembered between requests.
 */
#include <stddef.h>
#include <stdint.h>

#define ADDRESS 0x000ffffffffff000ull
#define READ 1
#define WRITE 2
#define SUPERPAGE 0x80

/* `reserved[level][leaf]` are bits that must be zero; `depths`, `types` and `leaves` are sets of AW values, TT values and levels. */
struct unit {
    const uint8_t *memory;
    uint64_t ram_end, root, beyond_haw, reserved[7][2];
    uint32_t mgaw, depths, types, leaves;
};

struct context {
    uint64_t table;
    unsigned levels, bits, type;
};

static const uint64_t *fetch(const struct unit *u, uint64_t address, uint64_t size)
{
    return address + size <= u->ram_end ? (const uint64_t *)(u->memory + address) : NULL;
}

static unsigned find_context(const struct unit *u, unsigned source, struct context *context)
{
    const uint64_t *entry = fetch(u, u->root + 16 * (source >> 8), 16);
    if (!entry)
        return 0x8;
    if (!(entry[0] & 1))
        return 0x1;
    if (entry[0] & (0xffe | u->beyond_haw) || entry[1])
        return 0xa;
    entry = fetch(u, (entry[0] & ADDRESS) + 16 * (source & 255), 16);
    if (!entry)
        return 0x9;
    if (!(entry[0] & 1))
        return 0x2;
    if (entry[0] & (0xff0 | u->beyond_haw) || entry[1] & ~0xffff7full)
        return 0xb;
    unsigned aw = entry[1] & 7, bits = 30 + 9 * aw;
    *context = (struct context){entry[0] & ADDRESS, aw + 2, bits < u->mgaw ? bits : u->mgaw, entry[0] >> 2 & 3};
    return u->depths >> aw & 1 && u->types >> context->type & 1 ? 0 : 0x3;
}

static unsigned walk(const struct unit *u, const struct context *context, uint64_t iova, unsigned need, uint64_t *address)
{
    uint64_t table = context->table;
    for (unsigned level = context->levels;; level--) {
        unsigned shift = 12 + 9 * (level - 1);
        const uint64_t *at = fetch(u, table + 8 * (iova >> shift & 511), 8);
        if (!at)
            return level == context->levels ? 0x3 : 0x7;
        uint64_t entry = *at;
        int leaf = level == 1 || (entry & SUPERPAGE && u->leaves >> level & 1);
        if (entry & (READ | WRITE) && entry & u->reserved[level][leaf])
            return 0xc;
        if (!(entry & need))
            return need == WRITE ? 0x5 : 0x6;
        table = entry & ADDRESS;
        if (leaf) {
            *address = table | (iova & ((1ull << shift) - 1));
            return *address >> 20 == 0xfee ? 0xe : 0;
        }
    }
}

static unsigned translate(const struct unit *u, unsigned source, uint64_t iova, unsigned need, uint64_t *address)
{
    struct context context;
    unsigned reason = find_context(u, source, &context);
    if (reason)
        return reason;
    if (context.bits < 64 && iova >> context.bits)
        return 0x4;
    if (iova >> 20 == 0xfee)
        return 0xe;
    *address = iova;
    return context.type == 2 ? 0 : walk(u, &context, iova, need, address);
}

void translate_all(const struct unit *u, size_t count, const uint16_t *source, const uint64_t *iova, const uint8_t *write, uint64_t *address,
                   uint8_t *reason)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t to = 0;
        reason[i] = translate(u, source[i], iova[i], write[i] ? WRITE : READ, &to);
        address[i] = reason[i] ? 0 : to;
    }
}
