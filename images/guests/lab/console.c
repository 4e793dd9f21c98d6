/* The console: COM1 at 115200 baud.  Transmit is polled; the receive interrupt only wakes the CPU. */
#include "lab.h"

enum { COM1 = 0x3f8, DATA = COM1, IER = COM1 + 1, FCR = COM1 + 2, LCR = COM1 + 3, MCR = COM1 + 4, LSR = COM1 + 5 };
enum { LSR_DATA_READY = 0x01, LSR_THRE = 0x20, FIFO_SIZE = 16 };

void console_init(void)
{
	outb(LCR, 0x80); /* divisor latch */
	outb(DATA, 1);
	outb(IER, 0);
	outb(LCR, 0x03); /* 8 bits, no parity, 1 stop bit */
	outb(FCR, 0x07); /* FIFOs on and emptied, interrupt at the first byte */
	outb(MCR, 0x0b); /* DTR, RTS, OUT2 (which lets the interrupt through) */
	outb(IER, 0x01); /* interrupt on received data */
}

/* THRE says that the FIFO is empty, so it is asked once for 16 characters (which take a real line 1.4 ms). */
static void put_raw(char c)
{
	static unsigned room;

	for (unsigned tries = 100000; !room && tries && !(inb(LSR) & LSR_THRE); tries--)
		;
	room = room ? room - 1 : FIFO_SIZE - 1;
	outb(DATA, c);
}

static void put(char c)
{
	if (c == '\n')
		put_raw('\r');
	put_raw(c);
}

char console_read(void)
{
	while (!(inb(LSR) & LSR_DATA_READY))
		wait_input();
	return inb(DATA);
}

static void put_padded(const char *text, size_t size, unsigned width, char pad)
{
	for (size_t n = size; n < width; n++)
		put(pad);
	for (size_t i = 0; i < size; i++)
		put(text[i]);
}

static void put_number(u64 value, unsigned base, bool negative, unsigned width, char pad)
{
	char text[24];
	size_t at = sizeof(text);

	do
		text[--at] = "0123456789abcdef"[value % base];
	while (value /= base);
	if (negative)
		text[--at] = '-';
	put_padded(text + at, sizeof(text) - at, width, pad);
}

/* %s %c %d %u %x %%, with a width, a leading 0, and l or ll. */
static void vprint(const char *f, va_list args)
{
	for (; *f; f++) {
		char pad = ' ';
		unsigned width = 0, longs = 0;

		if (*f != '%') {
			put(*f);
			continue;
		}
		if (*++f == '0')
			pad = *f++;
		for (; *f >= '0' && *f <= '9'; f++)
			width = width * 10 + *f - '0';
		for (; *f == 'l'; f++)
			longs++;
		if (*f == 's') {
			const char *s = va_arg(args, const char *);

			put_padded(s, strlen(s), width, pad);
		} else if (*f == 'd') {
			long v = longs ? va_arg(args, long) : va_arg(args, int);

			put_number(v < 0 ? -(u64)v : (u64)v, 10, v < 0, width, pad);
		} else if (*f == 'u' || *f == 'x') {
			put_number(longs ? va_arg(args, u64) : va_arg(args, u32), *f == 'x' ? 16 : 10, false, width, pad);
		} else {
			put(*f == 'c' ? va_arg(args, int) : *f);
		}
	}
}

void print(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprint(format, args);
	va_end(args);
}

/* A line of the boot, with Linux's time stamp. */
void klog(const char *format, ...)
{
	u64 now = time_us();
	va_list args;

	print("[%5lu.%06lu] ", now / SECONDS, now % SECONDS);
	va_start(args, format);
	vprint(format, args);
	va_end(args);
}

static void hexdump_line(u64 address, const u8 *data, size_t size)
{
	print("%016lx ", address);
	for (size_t i = 0; i < 16; i++) {
		print(i == 8 ? "  " : " ");
		if (i < size)
			print("%02x", data[i]);
		else
			print("  ");
	}
	print("  |");
	for (size_t i = 0; i < size; i++)
		print("%c", data[i] >= 0x20 && data[i] < 0x7f ? data[i] : '.');
	print("|\n");
}

void hexdump(u64 address, const void *data, size_t size)
{
	for (size_t i = 0; i < size; i += 16)
		hexdump_line(address + i, (const u8 *)data + i, size - i < 16 ? size - i : 16);
}
