/* The ways in (Linux's 64-bit boot protocol, PVH), the gates, and the way into and out of a snippet. */

#define CS 0x10
#define DS 0x18
#define MSR_EFER 0xc0000080

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 8, 18			/* sizes of name and value; XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.quad pvh_start

	.section .text.entry, "ax"
	.code64
	.globl linux_start
linux_start:
	cli
	cld
	mov $stack_top, %esp
	mov $pml4, %eax
	call fill_tables
	mov %rax, %cr3
	lgdt early_gdtr
	push $CS
	push $start64
	lretq

/* The first GiB in pages of 2 MiB.  Instructions that mean the same in 32-bit and 64-bit code. */
	.code32
pvh_start:
	cli
	cld
	mov $stack_top, %esp
	mov $pml4, %eax
	call fill_tables
	mov %eax, %cr3
	mov %cr4, %eax
	or $0x20, %eax
	mov %eax, %cr4
	mov $MSR_EFER, %ecx
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000001, %eax
	mov %eax, %cr0
	lgdt early_gdtr
	ljmp $CS, $start64

	.code64
fill_tables:
	mov $pd, %edi
	mov $0x83, %edx
	mov $512, %ecx
1:	mov %edx, (%rdi)
	add $0x200000, %edx
	add $8, %edi
	loop 1b
	mov $(pd + 3), %edx
	mov $pdpt, %edi
	mov %edx, (%rdi)
	mov $(pdpt + 7), %edx
	mov $pml4, %edi
	mov %edx, (%rdi)
	ret

start64:
	mov $DS, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	xor %eax, %eax
	mov %eax, %fs
	mov %eax, %gs
	mov $stack_top, %esp
	call traps_main			/* does not return */

/* One gate of 16 bytes for each vector.  All leave the same frame: error code (0 where the CPU has none), vector, new RFLAGS. */
	.balign 16
	.globl trap_gates
trap_gates:
	.set vector, 0
	.rept 256
	.balign 16
	.if (vector != 8) && (vector < 10 || vector > 14) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
	push $0
	.endif
	pushq $vector
	jmp trap_common
	.set vector, vector + 1
	.endr

trap_common:
	pushfq
	push %rax
	push %rcx
	push %rdx
	push %rbx
	push %rbp
	push %rsi
	push %rdi
	push %r11
	xor %esi, %esi
	mov %ss, %esi
	xor %edx, %edx
	mov %cs, %edx
	cld
	mov %rsp, %rdi
	mov %rsp, %rbx
	mov $trap_stack_top, %esp
	call trap			/* (frame, new SS, new CS): true to go on with IRETQ */
	test %eax, %eax
	jz leave_snippet
	mov %rbx, %rsp
	pop %r11
	pop %rdi
	pop %rsi
	pop %rbp
	pop %rbx
	pop %rdx
	pop %rcx
	pop %rax
	add $24, %rsp			/* new RFLAGS, vector, error code */
	iretq

/* SYSCALL leads here: what it left is noted, and SYSRET goes back. */
	.globl syscall_entry, syscall_entry32
syscall_entry32:
	movl $32, syscall_state + 48
	jmp 1f
syscall_entry:
	movl $64, syscall_state + 48
1:
	mov %rsp, syscall_state
	mov $trap_stack_top, %esp
	pushfq
	popq syscall_state + 8
	mov %rcx, syscall_state + 16
	mov %r11, syscall_state + 24
	mov %cs, syscall_state + 32
	mov %ss, syscall_state + 40
	call syscall_told
	mov syscall_state + 16, %rcx
	mov syscall_state + 24, %r11
	mov syscall_state, %rsp
	sysretq

/* enter_snippet(frame of IRETQ, RAX, RDX): comes back when a trap does not go on. */
	.globl enter_snippet
enter_snippet:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, kept_stack
	mov %rdi, %rsp
	mov %rsi, %rax
	xor %ebx, %ebx
	xor %ecx, %ecx
	xor %esi, %esi
	xor %edi, %edi
	xor %ebp, %ebp
	xor %r11d, %r11d
	iretq

leave_snippet:
	mov kept_stack, %rsp
	mov $DS, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	cld
	ret

	.section .data
	.balign 8
early_gdt:
	.quad 0, 0
	.quad 0x00af9b000000ffff	/* 0x10: 64-bit code, accessed */
	.quad 0x00cf93000000ffff	/* 0x18: data, accessed */
early_gdtr:
	.word 31
	.quad early_gdt

	.section .bss
	.balign 4096
	.globl pml4, pdpt, trap_stack_top, kept_stack, syscall_state
pml4:	.skip 4096
pdpt:	.skip 4096
pd:	.skip 4096
	.skip 16384
stack_top:
	.skip 16384
trap_stack_top:
kept_stack:
	.skip 8
syscall_state:
	.skip 56
