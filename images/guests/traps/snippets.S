/* What is run: position-independent pieces of code, in ring 0 where they are linked and in ring 3 in the window.  RAX and RDX are
 * arguments; INT 0x21 ends one. */

	.macro snippet name
	.balign 16
	.globl s_\name
s_\name:
	.endm
	.macro end
	int $0x21
	.endm

	.section .user, "ax"
	.balign 4096
	.globl user_start
user_start:
snippet nothing
	end
snippet divide
	mov $1, %eax
	xor %edx, %edx
	xor %ecx, %ecx
	div %ecx
	end
snippet overflow			/* the quotient does not fit */
	mov $5, %edx
	mov $2, %ecx
	div %ecx
	end
snippet int3
	nop
	int3
	nop
	end
snippet int80
	nop
	int $0x80
	nop
	end
snippet int14
	int $14
	end
snippet int13
	int $13
	end
snippet ud2
	cmp $3, %eax
	ud2
	end
snippet lock_add
	.byte 0xf0, 0x01, 0xc0
	end
snippet lock_nop
	.byte 0xf0, 0x90
	end
snippet push_es			/* gone in 64-bit mode */
	.byte 0x06
	end
snippet into
	.byte 0xce
	end
snippet far_immediate
	.byte 0xea, 0, 0, 0, 0, 0, 0
	end
snippet fldz
	fldz
	end
snippet sse
	movaps %xmm0, %xmm1
	end
snippet fwait
	fwait
	end
snippet load_ds
	mov %eax, %ds
	end
snippet load_ss
	mov %eax, %ss
	end
snippet load_fs
	mov %eax, %fs
	end
snippet read
	nop
	mov (%rax), %rcx
	end
snippet write
	nop
	movq %rdx, (%rax)
	end
snippet change
	nop
	incq (%rax)
	end
snippet read32
	nop
	.byte 0x8b, 0x08		/* mov (%rax), %ecx; (%eax) in 32-bit code */
	end
snippet read_byte
	mov (%rax), %cl
	end
snippet read_by_rbp
	mov %rax, %rbp
	mov (%rbp), %rcx
	end
snippet push
	mov %rax, %rsp
	push %rdx
	end
snippet call_it
	call *%rax
	end
snippet jump
	jmp *%rax
	end
snippet copy
	mov %rax, %rdi
	mov %rdx, %rsi
	mov $4, %ecx
	rep movsb
	end
snippet cli
	cli
	end
snippet sti
	sti
	end
snippet hlt
	hlt
	end
snippet in80
	in $0x80, %al
	end
snippet lgdt
	lgdt (%rax)
	end
snippet rdmsr
	mov $0xc0000080, %ecx
	rdmsr
	end
snippet move_cr3
	mov %cr3, %rcx
	end
snippet sysret
	mov %rax, %rcx
	mov $0x202, %r11d
	sysretq
	end
snippet syscall
	std
	stc
	syscall
	end
snippet nops
	nop
	nop
	nop
	end
snippet popf			/* single step begins and ends inside */
	pushq %rax
	popfq
	nop
	xor %ecx, %ecx
	pushq %rdx
	popfq
	nop
	end
snippet step_ss
	mov %ss, %ecx
	mov %ecx, %ss
	nop
	nop
	end
snippet step_string
	mov %rax, %rdi
	mov $3, %ecx
	rep stosb
	end
snippet flags
	mov $0x7fffffff, %ecx
	add $1, %ecx
	ud2
	end
snippet flags2
	xor %ecx, %ecx
	sub $1, %ecx
	std
	ud2
	end
snippet flags3
	mov $0x80, %ecx
	shl $25, %ecx
	ud2
	end
snippet iret			/* to what lies at RAX */
	mov %rax, %rsp
	iretq
	end
snippet sti_nop
	nop
	sti
	nop
	nop
	nop
	cli
	end
snippet sti_hlt
	nop
	sti
	hlt
	nop
	cli
	end
snippet sti_ss
	mov %ss, %ecx
	sti
	mov %ecx, %ss
	nop
	nop
	cli
	end
snippet sti_pop_ss
	mov %ss, %ecx
	sti
	nop
	cli
	end
snippet sti_sti
	sti
	sti
	nop
	nop
	cli
	end
snippet sti_cli
	sti
	cli
	nop
	end
snippet sti_popf
	pushfq
	orq $0x200, (%rsp)
	popfq
	nop
	nop
	cli
	end
snippet spin
	jmp s_spin
snippet fpu_divide
	fninit
	pushq $0x033b			/* #Z not masked */
	fldcw (%rsp)
	fld1
	fldz
	fdivrp
	nop
	fwait
	end
snippet sse_divide
	pushq $0x1d80			/* ZM not masked */
	ldmxcsr (%rsp)
	mov $0x3f800000, %ecx
	movd %ecx, %xmm0
	xorps %xmm1, %xmm1
	divss %xmm1, %xmm0
	end
snippet movaps
	movaps (%rax), %xmm0
	end
	.balign 4096
	.globl user_end
user_end:
