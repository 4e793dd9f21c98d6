# A player in the place of a PC's firmware: 32-bit flat mode, interrupts off.  At 0x100000 lie u32 the number of commands and the commands
# (u32 operation, u32 a, u32 b); each is answered by four bytes on port 0xe9, and at the end the machine is switched off by port 0x501.
# RAM: 0x500 vector that was taken, 0x1000 IDT, stack below 0x8000.

.set	SCRIPT, 0x100000
.set	ANSWERS, 0xe9
.set	OFF, 0x501
.set	TAKEN, 0x500
.set	IDT, 0x1000

	.code32
	.text
	.globl start
start:
	mov	$16, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$0x8000, %esp
	mov	$IDT, %edi
	mov	$stubs, %eax
gate:
	mov	%ax, (%edi)
	movw	$8, 2(%edi)
	movw	$0x8e00, 4(%edi)
	mov	%eax, %edx
	shr	$16, %edx
	mov	%dx, 6(%edi)
	add	$16, %eax
	add	$8, %edi
	cmp	$IDT + 8 * 256, %edi
	jne	gate
	lidt	idtr

	mov	$SCRIPT + 4, %ebp
next:
	decl	SCRIPT
	js	done
	mov	(%ebp), %ecx
	mov	4(%ebp), %esi
	mov	8(%ebp), %edi
	add	$12, %ebp
	call	*operations(, %ecx, 4)
	mov	$ANSWERS, %edx
	mov	$4, %ecx
put:
	out	%al, %dx
	shr	$8, %eax
	loop	put
	jmp	next

done:
	mov	$OFF, %edx
	out	%al, %dx
	hlt

operations:
	.long	load, store, take, input, output, output4, measure

load:
	mov	(%esi), %eax
	ret

store:
	mov	%edi, (%esi)
	xor	%eax, %eax
	ret

# One interrupt at most: its handler leaves them off.
take:
	movl	$-1, TAKEN
	sti
	nop
	nop
	cli
	mov	TAKEN, %eax
	ret

input:
	mov	%esi, %edx
	xor	%eax, %eax
	in	%dx, %al
	ret

output:
	mov	%esi, %edx
	mov	%edi, %eax
	out	%al, %dx
	xor	%eax, %eax
	ret

output4:
	mov	%esi, %edx
	mov	%edi, %eax
	out	%eax, %dx
	xor	%eax, %eax
	ret

# By how much the local APIC's timer counts down in b ticks of the ACPI timer at port a.
measure:
	mov	%esi, %edx
	in	%dx, %eax
	mov	%eax, %ebx
	mov	0xfee00390, %ecx
wait:
	in	%dx, %eax
	sub	%ebx, %eax
	and	$0xffffff, %eax
	cmp	%edi, %eax
	jb	wait
	mov	%ecx, %eax
	sub	0xfee00390, %eax
	ret

taken:
	popl	TAKEN
	andl	$~0x200, 8(%esp)
	iret

	.balign	16
stubs:
	.set	vector, 0
	.rept	256
	push	$vector
	jmp	taken
	.balign	16
	.set	vector, vector + 1
	.endr

	.balign	8
gdt:
	.quad	0, 0x00cf9b000000ffff, 0x00cf93000000ffff
idtr:
	.word	8 * 256 - 1
	.long	IDT

	.section .reset, "ax"
	.code16
enter:
	cli
	lgdtl	%cs:0xff80 + gdtr - enter
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	ljmpl	$8, $start
gdtr:
	.word	23
	.long	gdt
	.org	0x70
	jmp	enter
	.org	0x80
