/* What a guest computes for the bench, with nothing of a PC but memory: its own page tables (data not executable), then hashing, sorting
   and pointer chasing within 512 KiB; the checksum goes into RAX, and the processor halts. */
typedef unsigned long u64;
typedef unsigned int u32;

#define TABLES 0x2000000UL
#define DATA 0x2400000UL
#define WORDS (1UL << 19)

static u64 random_word(u64 *state)
{
	u64 x = *state;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

static void map_memory(void)
{
	u64 *top = (u64 *)TABLES, *gib = top + 512, *mib = gib + 512;
	for (u64 i = 0; i < 512; i++) {
		top[i] = gib[i] = 0;
		mib[i] = i << 21 | 0xE3 | (i < 16 ? 0 : 1UL << 63);
	}
	top[0] = (u64)gib | 0x63;
	gib[0] = (u64)mib | 0x63;
	asm volatile("mov %0, %%cr3" : : "r"(top) : "memory");
}

static void sort(u64 *v, long n)
{
	while (n > 16) {
		u64 pivot = v[n / 2];
		long i = 0, j = n - 1;
		while (i <= j) {
			while (v[i] < pivot)
				i++;
			while (v[j] > pivot)
				j--;
			if (i <= j) {
				u64 t = v[i];
				v[i++] = v[j];
				v[j--] = t;
			}
		}
		sort(v, j + 1);
		v += i;
		n -= i;
	}
	for (long i = 1; i < n; i++)
		for (long j = i; j > 0 && v[j - 1] > v[j]; j--) {
			u64 t = v[j];
			v[j] = v[j - 1];
			v[j - 1] = t;
		}
}

static u64 work(void)
{
	u64 *v = (u64 *)DATA, state = 88172645463325252UL, sum = 0;
	for (int round = 0; round < ROUNDS; round++) {
		for (u64 i = 0; i < WORDS; i++)
			v[i] = random_word(&state) ^ sum;
		sort(v, WORDS / 8);
		u32 hash = 2166136261u;
		for (u64 i = 0; i < WORDS * 2; i++)
			hash = (hash ^ ((u32 *)v)[i]) * 16777619u;
		u64 at = 0;
		for (int i = 0; i < 400000; i++)
			at = v[at & (WORDS / 8 - 1)] + i;
		sum += hash ^ at;
	}
	return sum;
}

void start(void)
{
	map_memory();
	u64 sum = work();
	asm volatile("cli; hlt" : : "a"(sum));
	__builtin_unreachable();
}
