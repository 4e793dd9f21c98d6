/* The ways in (Linux's 64-bit boot protocol, PVH) and the gates of exceptions and interrupts. */

#define CS 0x10 /* the selectors of Linux's boot protocol */
#define DS 0x18
#define PRESENT_WRITABLE 0x3
#define LARGE_PAGE 0x80
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100
#define CR4_PAE 0x20
#define CR0_PE_PG 0x80000001

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 8, 18			/* sizes of name and value; XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.quad pvh_start

	.section .text.entry, "ax"

/* Linux: long mode, the first 4 GiB identity-mapped, RSI = boot_params. */
	.code64
	.globl linux_start
linux_start:
	cli
	cld
	mov $1, %edi			/* BOOT_LINUX */
	lgdt gdt_pointer
	mov $stack_top, %esp
	push $CS
	push $start64
	lretq

/* PVH: protected mode, paging off, EBX = hvm_start_info. */
	.code32
	.globl pvh_start
pvh_start:
	cli
	cld
	mov %ebx, %esi
	mov $early_pd, %edi		/* 2048 pages of 2 MiB: 4 GiB */
	mov $(PRESENT_WRITABLE | LARGE_PAGE), %eax
	mov $2048, %ecx
1:	mov %eax, (%edi)
	add $0x200000, %eax
	add $8, %edi
	loop 1b
	movl $(early_pd + PRESENT_WRITABLE), early_pdpt
	movl $(early_pd + 0x1000 + PRESENT_WRITABLE), early_pdpt + 8
	movl $(early_pd + 0x2000 + PRESENT_WRITABLE), early_pdpt + 16
	movl $(early_pd + 0x3000 + PRESENT_WRITABLE), early_pdpt + 24
	movl $(early_pdpt + PRESENT_WRITABLE), early_pml4
	mov $early_pml4, %eax
	mov %eax, %cr3
	mov %cr4, %eax
	or $CR4_PAE, %eax
	mov %eax, %cr4
	mov $MSR_EFER, %ecx
	rdmsr
	or $EFER_LME, %eax
	wrmsr
	mov %cr0, %eax
	or $CR0_PE_PG, %eax
	mov %eax, %cr0
	mov $2, %edi			/* BOOT_PVH */
	lgdt gdt_pointer
	ljmp $CS, $start64

	.code64
start64:
	mov $DS, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	xor %eax, %eax
	mov %eax, %fs
	mov %eax, %gs
	mov $stack_top, %esp
	mov %edi, %edi
	mov %esi, %eax			/* PVH: only the low half is defined */
	cmp $2, %edi
	cmove %rax, %rsi
	xor %ebp, %ebp
	call lab_main			/* (kind, info); does not return */

/* One gate of 16 bytes for each vector.  All leave the same frame: error code (0 where the CPU has none), vector. */
	.balign 16
	.globl trap_gates
trap_gates:
	.set vector, 0
	.rept 48
	.balign 16
	.if (vector != 8) && (vector < 10 || vector > 14) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
	push $0
	.endif
	push $vector
	jmp trap_common
	.set vector, vector + 1
	.endr

trap_common:
	push %rax
	push %rcx
	push %rdx
	push %rbx
	push %rbp
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	push %r12
	push %r13
	push %r14
	push %r15
	cld
	mov %rsp, %rdi
	call trap
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rbp
	pop %rbx
	pop %rdx
	pop %rcx
	pop %rax
	add $16, %rsp			/* vector, error code */
	iretq

	.section .data
	.balign 8
gdt:
	.quad 0, 0
	.quad 0x00af9b000000ffff	/* 0x10: 64-bit code, accessed */
	.quad 0x00cf93000000ffff	/* 0x18: data, accessed */
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad gdt

	.section .bss
	.balign 4096
early_pml4:
	.skip 4096
early_pdpt:
	.skip 4096
early_pd:
	.skip 4 * 4096
	.skip 65536
stack_top:
