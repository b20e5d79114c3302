#include "textflag.h"

// func syscall32(nr, a, b, c uint32) int32
TEXT ·syscall32(SB),NOSPLIT,$0-20
	MOVL nr+0(FP), AX
	MOVL a+4(FP), BX
	MOVL b+8(FP), CX
	MOVL c+12(FP), DX
	MOVL $0, SI
	MOVL $0, DI
	PUSHQ BP
	MOVL $0, BP
	INT $0x80
	POPQ BP
	MOVL AX, ret+16(FP)
	RET
