#include "textflag.h"

// func vfork(flags uintptr) (pid uintptr, errno syscall.Errno)
//
// The child runs on the same stack and calls on over the place of our return
// address, so that it waits in a register, which the kernel keeps for each.
TEXT ·vfork(SB),NOSPLIT|NOFRAME,$0-24
	MOVQ	flags+0(FP), DI
	MOVQ	$0, SI
	MOVQ	$0, DX
	MOVQ	$0, R10
	MOVQ	$0, R8
	MOVQ	$56, AX	// clone
	POPQ	R12
	SYSCALL
	PUSHQ	R12
	CMPQ	AX, $0xfffffffffffff001
	JCC	failed
	MOVQ	AX, pid+8(FP)
	MOVQ	$0, errno+16(FP)
	RET
failed:
	NEGQ	AX
	MOVQ	$0, pid+8(FP)
	MOVQ	AX, errno+16(FP)
	RET

// func probe(flags uintptr) (pid uintptr, errno syscall.Errno)
TEXT ·probe(SB),NOSPLIT|NOFRAME,$0-24
	MOVQ	flags+0(FP), DI
	MOVQ	$0, SI
	MOVQ	$0, DX
	MOVQ	$0, R10
	MOVQ	$0, R8
	MOVQ	$56, AX	// clone
	SYSCALL
	CMPQ	AX, $0xfffffffffffff001
	JCC	failed
	TESTQ	AX, AX
	JZ	child
	MOVQ	AX, pid+8(FP)
	MOVQ	$0, errno+16(FP)
	RET
failed:
	NEGQ	AX
	MOVQ	$0, pid+8(FP)
	MOVQ	AX, errno+16(FP)
	RET
child:
	MOVQ	$0, DI
	MOVQ	$231, AX	// exit_group
	SYSCALL
	JMP	child

// func vfork3(args, size uintptr) (pid uintptr, errno syscall.Errno)
//
// As vfork; the child runs on the same stack, since args names no other.
TEXT ·vfork3(SB),NOSPLIT|NOFRAME,$0-32
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	$435, AX	// clone3
	POPQ	R12
	SYSCALL
	PUSHQ	R12
	CMPQ	AX, $0xfffffffffffff001
	JCC	failed
	MOVQ	AX, pid+16(FP)
	MOVQ	$0, errno+24(FP)
	RET
failed:
	NEGQ	AX
	MOVQ	$0, pid+16(FP)
	MOVQ	AX, errno+24(FP)
	RET

// func clone3(args *cloneArgs, size, start uintptr, t *task) (pid uintptr, errno syscall.Errno)
//
// The child comes back on its own stack, with t and start in registers, and
// calls start as Go code does: the wrapper for calls from assembly would call
// the race detector, which wants a goroutine's stack.
TEXT ·clone3(SB),NOSPLIT,$0-48
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	start+16(FP), R13
	MOVQ	t+24(FP), R12
	MOVQ	$435, AX	// clone3
	SYSCALL
	CMPQ	AX, $0xfffffffffffff001
	JCC	failed
	TESTQ	AX, AX
	JZ	child
	MOVQ	AX, pid+32(FP)
	MOVQ	$0, errno+40(FP)
	RET
failed:
	NEGQ	AX
	MOVQ	$0, pid+32(FP)
	MOVQ	AX, errno+40(FP)
	RET
child:
	XORL	BP, BP
	MOVQ	R12, AX
	CALL	R13
	INT	$3
