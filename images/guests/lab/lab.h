/* The lab guest: what its files know of each other.  Memory is identity-mapped, so a physical address is a pointer. */
#ifndef LAB_H
#define LAB_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define PAGE 4096ul
#define ARRAY_SIZE(a) (sizeof(a) / sizeof(*(a)))

/* boot.c: what the loader told */
enum boot_kind { BOOT_LINUX = 1, BOOT_PVH = 2 };
enum { E820_USABLE = 1, E820_MAX = 128 };
struct e820_entry {
	u64 base, length;
	u32 type;
};
struct boot_info {
	unsigned entries;
	struct e820_entry e820[E820_MAX];
	char command_line[256];
};
extern struct boot_info boot;
void boot_read(enum boot_kind kind, u64 info);
void boot_print_e820(void (*print)(const char *format, ...));
u64 boot_option(const char *name, u64 otherwise);

/* string.c */
void *memset(void *to, int byte, size_t size);
void *memcpy(void *to, const void *from, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t strlen(const char *s);
bool equal(const char *a, const char *b);
bool parse_number(const char *text, u64 *value);

/* console.c: COM1 */
void console_init(void);
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void klog(const char *format, ...) __attribute__((format(printf, 1, 2)));
char console_read(void);
void hexdump(u64 address, const void *data, size_t size);

/* paging.c, memory.c */
extern u64 cpu_reach; /* first physical address that the CPU does not reach */
void paging_init(void);
void *page_alloc(void);

/* trap.c: exceptions, and accesses that may fail */
struct fault {
	bool happened;
	u8 vector;
	u64 error, address;
};
extern struct fault fault; /* of the last guarded instruction */
void trap_init(void);
const char *fault_name(void);
bool try_read(u64 address, unsigned width, u64 *value);
bool try_write(u64 address, unsigned width, u64 value);
bool try_copy(void *to, u64 from, size_t size);
bool try_vmmcall(u64 *rax);
_Noreturn void halt(void);

/* time.c: the 8259 pair, the 8254's one-shot, the ACPI PM timer */
#define MS 1000ul
#define SECONDS 1000000ul
#define FOREVER (~0ul)
void time_init(void);
u64 time_us(void);
void time_patience(u64 us);
bool wait_until(bool (*done)(void *), void *argument, u64 timeout_us);
void wait_input(void);

/* pci.c */
struct bar {
	u64 address, size;
	bool io, wide, prefetchable;
};
struct pci_function {
	u8 bus, device, function, header;
	u16 vendor, id;
	u32 class_code;
	u8 revision;
	struct bar bars[6];
};
extern struct pci_function pci_functions[];
extern unsigned pci_count;
enum { PCI_COMMAND_DECODE = 3, PCI_COMMAND_MEMORY = 2, PCI_COMMAND_MASTER = 4 };
void pci_scan(void);
const struct pci_function *pci_find_class(u32 class_code);
const struct pci_function *pci_find_id(u16 vendor, u16 id);
void pci_command(const struct pci_function *f, u16 clear, u16 set);
u32 pci_config_read(const struct pci_function *f, unsigned offset);
void pci_config_write(const struct pci_function *f, unsigned offset, u32 value);
unsigned pci_capability(const struct pci_function *f, u8 id);

/* acpi.c */
void acpi_print(void);
u64 acpi_table(unsigned index);
unsigned dmar_units(u64 *units, unsigned most);

/* nvme.c: the driver */
enum { NVME_OK = 0, NVME_TIMEOUT = -4, NVME_EIO = -5, NVME_ENOMEM = -12, NVME_ENODEV = -19 };
enum { NVME_FLUSH = 0, NVME_WRITE = 1, NVME_READ = 2 };
enum { NVME_TRANSFER_PAGES = 5 };
struct nvme_state {
	bool ready; /* I/O queues exist */
	u64 blocks;
	u32 block_bytes;
	unsigned transfer_pages; /* most pages of one command */
	u8 *pages[NVME_TRANSFER_PAGES];
};
extern struct nvme_state nvme;
bool nvme_probe(void);
bool nvme_io(u8 opcode, u64 lba, unsigned blocks);
void nvme_print(void);
bool nvme_dump(u64 address, u64 lba);
bool nvme_load(u64 lba, u64 address);
bool nvme_present(void);
u16 nvme_source(void);
bool nvme_block(u64 lba, void *data, unsigned length);
bool nvme_fetch(u64 address, void *data, unsigned length);
bool nvme_store(u64 address, const void *data, unsigned length);
bool nvme_message(u64 address, u32 data);

/* disk.c: the content of the lab's disk */
enum { BLOCK = 512 };
bool disk_check(void);
void disk_start(void);
void disk_show(u64 lba);

/* edu.c: DMA by QEMU's teaching device */
void edu_read(u64 address, unsigned length);
void edu_write(u64 address, unsigned length, u64 pattern);
bool edu_present(void);
u16 edu_source(void);
bool edu_fetch(u64 address, void *data, unsigned length);
bool edu_store(u64 address, const void *data, unsigned length);
bool edu_buffer(void *data, unsigned length);

/* attack.c */
void attack(const char *name, const char *device);

/* iommu.c: the remapping units, driven by the guest itself */
void iommu_on(bool rmrrs);
void iommu_off(void);
void iommu_print(void);

/* monitor.c */
_Noreturn void monitor(void);

/* Port I/O and registers */
static inline void outb(u16 port, u8 v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline void outw(u16 port, u16 v) { __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port)); }
static inline void outl(u16 port, u32 v) { __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u16 inw(u16 port) { u16 v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 inl(u16 port) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static inline u32 read32(u64 address) { return *(volatile u32 *)address; }
static inline u64 read64(u64 address) { return *(volatile u64 *)address; }
static inline void write32(u64 address, u32 v) { *(volatile u32 *)address = v; }
static inline void write64(u64 address, u64 v) { *(volatile u64 *)address = v; }

struct cpuid { u32 eax, ebx, ecx, edx; };
static inline struct cpuid cpuid(u32 leaf, u32 subleaf)
{
	struct cpuid r;
	__asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
	return r;
}

#endif
