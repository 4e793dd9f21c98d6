/* The world switch: the only machine code of the core.  One 4 KiB text page (read, execute); the data page follows it.
 *
 * It is entered once, in long mode.  It takes the core's own paging, descriptor table and stack, then runs the guest for ever: VMRUN,
 * registers saved, and out to the policy by an OUT to DOOR.  Where the policy has set DATA_WAIT the processor halts until an
 * interrupt, and asks the policy again.
 */
        .intel_syntax noprefix
        .set DOOR, 0xe0
        /* the data page; hvcore/vmm/layout.py names the same offsets */
        .set DATA, 0x1000
        .set DATA_VMCB, DATA + 0x00
        .set DATA_HOST, DATA + 0x08
        .set DATA_WAIT, DATA + 0x10
        .set DATA_CR3, DATA + 0x18
        .set DATA_GDTR, DATA + 0x20
        .set DATA_HSAVE, DATA + 0x30
        .set DATA_STACK, DATA + 0x38
        .set DATA_GPRS, DATA + 0x100

        .macro load register, number
        mov     \register, qword ptr [rip + text + DATA_GPRS + 8 * \number]
        .endm
        .macro save register, number
        mov     qword ptr [rip + text + DATA_GPRS + 8 * \number], \register
        .endm
        .macro registers each                   /* all but RAX and RSP, which VMRUN keeps in the VMCB */
        \each rcx, 1
        \each rdx, 2
        \each rbx, 3
        \each rbp, 5
        \each rsi, 6
        \each rdi, 7
        \each r8, 8
        \each r9, 9
        \each r10, 10
        \each r11, 11
        \each r12, 12
        \each r13, 13
        \each r14, 14
        \each r15, 15
        .endm

        .text
text:
        .globl _start
_start:
        mov     ecx, 0xc0000080                 /* EFER: SVME, NXE, LMA, LME, SCE */
        mov     eax, 0x1d01
        xor     edx, edx
        wrmsr
        mov     ecx, 0xc0010117                 /* VM_HSAVE_PA */
        mov     eax, dword ptr [rip + text + DATA_HSAVE]
        mov     edx, dword ptr [rip + text + DATA_HSAVE + 4]
        wrmsr
        mov     rax, qword ptr [rip + text + DATA_CR3]
        mov     cr3, rax
        lgdt    [rip + text + DATA_GDTR]
        mov     ax, 0x10
        mov     ss, ax
        mov     ds, ax
        mov     es, ax
        mov     rsp, qword ptr [rip + text + DATA_STACK]
        push    8                               /* a real 64-bit code segment, before the first VMRUN saves it */
        lea     rax, [rip + 1f]
        push    rax
        retfq
1:      mov     rax, qword ptr [rip + text + DATA_HOST]
        vmsave  rax
        jmp     door                            /* DATA_WAIT is set at first: the policy sees the processor once before the guest does */

run:    clgi
        mov     rax, qword ptr [rip + text + DATA_VMCB]
        vmload  rax
        registers load
        vmrun   rax
        registers save
        vmsave  rax
        mov     rax, qword ptr [rip + text + DATA_HOST]
        vmload  rax
        stgi
door:   out     DOOR, al
        cmp     byte ptr [rip + text + DATA_WAIT], 0
        je      run
        hlt
        jmp     door
