# SPDX-License-Identifier: GPL-2.0
# In the place of a capture kernel: say on the serial port that it was reached, with the command line, and halt.
# The 64-bit boot protocol's entry: RSI has boot_params (Documentation/arch/x86/boot.rst).
	.code64
	.globl _start
_start:
	cli
	mov	0x228(%rsi), %ebx
	lea	said(%rip), %rsi
1:	lodsb
	test	%al, %al
	jnz	2f
	test	%rbx, %rbx
	jz	4f
	mov	%rbx, %rsi
	xor	%ebx, %ebx
	jmp	1b
2:	mov	%al, %ah
	mov	$0x3fd, %dx
3:	in	%dx, %al
	test	$0x20, %al
	jz	3b
	mov	%ah, %al
	mov	$0x3f8, %dx
	out	%al, %dx
	jmp	1b
4:	hlt
	jmp	4b
said:
	.asciz	"\nlab: captured "
