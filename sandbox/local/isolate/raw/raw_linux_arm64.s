#include "textflag.h"

// func vfork(flags uintptr) (pid uintptr, errno syscall.Errno)
//
// The return address stays in its register, which the kernel keeps for each.
TEXT ·vfork(SB),NOSPLIT|NOFRAME,$0-24
	MOVD	flags+0(FP), R0
	MOVD	$0, R1
	MOVD	$0, R2
	MOVD	$0, R3
	MOVD	$0, R4
	MOVD	$220, R8	// clone
	SVC
	CMN	$4095, R0
	BCS	failed
	MOVD	R0, pid+8(FP)
	MOVD	ZR, errno+16(FP)
	RET
failed:
	NEG	R0, R0
	MOVD	ZR, pid+8(FP)
	MOVD	R0, errno+16(FP)
	RET

// func probe(flags uintptr) (pid uintptr, errno syscall.Errno)
TEXT ·probe(SB),NOSPLIT|NOFRAME,$0-24
	MOVD	flags+0(FP), R0
	MOVD	$0, R1
	MOVD	$0, R2
	MOVD	$0, R3
	MOVD	$0, R4
	MOVD	$220, R8	// clone
	SVC
	CMN	$4095, R0
	BCS	failed
	CBZ	R0, child
	MOVD	R0, pid+8(FP)
	MOVD	ZR, errno+16(FP)
	RET
failed:
	NEG	R0, R0
	MOVD	ZR, pid+8(FP)
	MOVD	R0, errno+16(FP)
	RET
child:
	MOVD	$0, R0
	MOVD	$94, R8	// exit_group
	SVC
	B	child

// func vfork3(args, size uintptr) (pid uintptr, errno syscall.Errno)
//
// As vfork; the child runs on the same stack, since args names no other.
TEXT ·vfork3(SB),NOSPLIT|NOFRAME,$0-32
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	$435, R8	// clone3
	SVC
	CMN	$4095, R0
	BCS	failed
	MOVD	R0, pid+16(FP)
	MOVD	ZR, errno+24(FP)
	RET
failed:
	NEG	R0, R0
	MOVD	R0, errno+24(FP)
	MOVD	ZR, pid+16(FP)
	RET

// func clone3(args *cloneArgs, size, start uintptr, t *task) (pid uintptr, errno syscall.Errno)
//
// The child comes back on its own stack, with t and start in registers, and
// calls start as Go code does: the wrapper for calls from assembly would call
// the race detector, which wants a goroutine's stack.
TEXT ·clone3(SB),NOSPLIT,$0-48
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	start+16(FP), R20
	MOVD	t+24(FP), R19
	MOVD	$435, R8	// clone3
	SVC
	CMN	$4095, R0
	BCS	failed
	CBZ	R0, child
	MOVD	R0, pid+32(FP)
	MOVD	ZR, errno+40(FP)
	RET
failed:
	NEG	R0, R0
	MOVD	ZR, pid+32(FP)
	MOVD	R0, errno+40(FP)
	RET
child:
	MOVD	ZR, R29
	MOVD	R19, R0
	CALL	(R20)
	BRK
