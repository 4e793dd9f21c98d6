/* What programs of a Linux may count on, told line by line: signals and their origins, single steps, code that is rewritten, time.
   A real processor tells the same but for the lines that the test names. */

#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static sigjmp_buf back;
static const char *name;
static char *area;

static void on_signal(int number, siginfo_t *info, void *context)
{
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    char *at = info->si_addr;

    __asm__ volatile("pushfq; andq $~0x40000, (%%rsp); popfq" ::: "memory", "cc");
    printf("%s: signal %d code %d trap %lld error %llx at ", name, number, info->si_code, r[REG_TRAPNO], r[REG_ERR]);
    if (at >= area && at < area + 0x10000)
        printf("area+%lx\n", (long)(at - area));
    else
        printf(at == (char *)r[REG_RIP] ? "the instruction\n" : "%p\n", (void *)at);
    siglongjmp(back, 1);
}

#define TRAP(what, ...) do { name = what; if (!sigsetjmp(back, 1)) { __VA_ARGS__; printf("%s: nothing\n", name); } } while (0)
#define CODE(what, text) TRAP(what, __asm__ volatile(text ::"b"(area) : "rax", "rcx", "rdx", "memory", "cc", "xmm0", "xmm1"))

char room[64];

static void signals(void)
{
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP}, alien;

    sigaltstack(&stack, 0);
    for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++)
        sigaction(numbers[n], &action, 0);
    area = mmap((void *)0x10000000, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    area[0x3000] = (char)0xC3;
    mprotect(area + 0x1000, 0x1000, PROT_READ);
    mprotect(area + 0x2000, 0x1000, PROT_NONE);
    munmap(area + 0x4000, 0x1000);

    CODE("DIV by 0", "xor %%edx, %%edx; xor %%ecx, %%ecx; div %%ecx");
    CODE("IDIV too large", "mov $-1, %%ecx; mov $0x80000000, %%eax; cltd; idiv %%ecx");
    CODE("read at 0", "mov 0, %%eax");
    CODE("not canonical", "mov $0x8000000000000000, %%rax; mov (%%rax), %%eax");
    CODE("read of the kernel", "mov $0xffffffff81000000, %%rax; mov (%%rax), %%eax");
    TRAP("call of the kernel", ((void (*)(void))0xffffffff81000000)());
    CODE("write of a page to read", "movb $1, 0x1000(%%rbx)");
    CODE("read of no rights", "mov 0x2000(%%rbx), %%al");
    CODE("read of nothing", "mov 0x4010(%%rbx), %%al");
    CODE("read across a border", "mov 0x1ffc(%%rbx), %%rax");
    CODE("write across a border", "movq $1, 0x3ffc(%%rbx)");
    TRAP("call of data", ((void (*)(void))(area + 0x3000))());
    CODE("REP MOVSB into nothing", "push %%rdi; push %%rsi; mov %%rbx, %%rsi; lea 0x3ff8(%%rbx), %%rdi; mov $16, %%ecx; rep movsb");
    CODE("UD2", "ud2");
    CODE("LOCK NOP", ".byte 0xf0, 0x90");
    CODE("LOCK BTS of a register", ".byte 0xf0, 0x0f, 0xab, 0xc0");
    CODE("SYSENTER", "sysenter");
    CODE("INT3", "int3");
    CODE("INT 4", "int $4");
    CODE("INT 0x81", "int $0x81");
    CODE("HLT", "hlt");
    CODE("CLI", "cli");
    CODE("IN", "in $0x80, %%al");
    CODE("OUT", "out %%al, $0x80");
    CODE("RDMSR", "rdmsr");
    CODE("MOV of CR0", "mov %%cr0, %%rax");
    CODE("WBINVD", "wbinvd");
    CODE("SWAPGS", "swapgs");
    CODE("MOV to SS of the kernel's", "mov $0x10, %%eax; mov %%ax, %%ss");
    CODE("MOVAPS not aligned", "movaps 1(%%rbx), %%xmm0");
    CODE("CMPXCHG16B not aligned", "cmpxchg16b 8(%%rbx)");
    CODE("16 bytes of an instruction", ".fill 15, 1, 0x66; nop");
    CODE("trap flag", "pushfq; orq $0x100, (%%rsp); popfq; nop; nop");
    CODE("#MF", "push $0x37b; fninit; fldcw (%%rsp); pop %%rax; fldz; fld1; fdivp; fwait");
    __asm__ volatile("fninit");
    alien = memfd_create("short", 0);
    if (ftruncate(alien, 100))
        exit(1);
    area = mmap((void *)0x20000000, 0x2000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, alien, 0);
    TRAP("write behind a file's end", area[0x1000] = 1);
}

__asm__("stepped: xor %eax, %eax; mov $2, %ecx; 1: dec %ecx; jnz 1b; cpuid; rdtsc; mov $39, %eax; syscall; mov %ss, %eax; mov %eax, %ss\n"
        "nop; mov $3, %ecx; lea room(%rip), %rdi; rep stosb; call 2f; jmp 3f; 2: ret; 3: nop; int3; stepped_end: nop");
extern char stepped[], stepped_end[];

static void steps(void)
{
    struct user_regs_struct r;
    int status;
    pid_t child = fork();

    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        ((void (*)(void))stepped)();
    }
    waitpid(child, &status, 0);
    ptrace(PTRACE_GETREGS, child, 0, &r);
    r.rip = (unsigned long)stepped;
    ptrace(PTRACE_SETREGS, child, 0, &r);
    printf("steps:");
    do {
        ptrace(PTRACE_SINGLESTEP, child, 0, 0);
        waitpid(child, &status, 0);
        ptrace(PTRACE_GETREGS, child, 0, &r);
        printf(" %lx", (long)r.rip - (long)stepped);
    } while (WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP && r.rip < (unsigned long)stepped_end);
    printf("\n");
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
}

static int tells(unsigned char *at, unsigned char *runs, int number)
{
    at[0] = 0xB8;
    memcpy(at + 1, &number, 4);
    at[5] = 0xC3;
    return ((int (*)(void))runs)();
}

static void code(void)
{
    int file = memfd_create("code", 0), wrong = 0;
    unsigned char *written, *run, program[6] = {0xB8, 0, 0, 0, 0, 0xC3};

    if (ftruncate(file, 4096))
        exit(1);
    written = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    run = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    for (int n = 0; n < 1000; n++)
        wrong += tells(written, run, n) != n;
    printf("code by another mapping: %d wrong\n", wrong);
    wrong = 0;
    for (int n = 0; n < 200; n++) {
        memcpy(program + 1, &n, 4);
        wrong += pwrite(file, program, 6, 0) != 6 || ((int (*)(void))run)() != n;
    }
    printf("code by the kernel: %d wrong\n", wrong);
    wrong = 0;
    for (int n = 0; n < 200; n++) {
        unsigned char *fresh = mmap((void *)0x30000000, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        wrong += tells(fresh, fresh, n) != n;
    }
    printf("code in fresh pages: %d wrong\n", wrong);
}

static volatile int alarms;

static void on_alarm(int number)
{
    alarms += number == SIGALRM;
}

static int64_t now(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void times(void)
{
    struct itimerval every = {{0, 10000}, {0, 10000}}, never = {{0, 0}, {0, 0}};
    struct timespec rest = {2, 0};
    int64_t before = 0, began;
    int backwards = 0;

    for (int n = 0; n < 20000; n++) {
        int64_t at = now(CLOCK_MONOTONIC);
        backwards += at < before;
        before = at;
    }
    printf("backwards: %d\n", backwards);
    began = now(CLOCK_MONOTONIC);
    nanosleep(&rest, 0);
    printf("two seconds: %lld tenths\n", (long long)(now(CLOCK_MONOTONIC) - began) / 100000000);
    signal(SIGALRM, on_alarm);
    setitimer(ITIMER_REAL, &every, 0);
    began = now(CLOCK_MONOTONIC);
    while (alarms < 20)
        ;
    setitimer(ITIMER_REAL, &never, 0);
    printf("20 alarms: %lld tenths\n", (long long)(now(CLOCK_MONOTONIC) - began + 50000000) / 100000000);
}

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    signals();
    steps();
    code();
    times();
    return 0;
}
