package sandbox

import (
	"context"
	"time"
)

type runningOnlyKey struct{}

// RunningOnly makes a call fail with ErrNotRunning where it would start or
// make the sandbox, and with ErrNotFound where there is none.
func RunningOnly(ctx context.Context) context.Context {
	return context.WithValue(ctx, runningOnlyKey{}, true)
}

type asideKey struct{}

// Aside makes a call no use of the sandbox: it does not keep it from idling out.
func Aside(ctx context.Context) context.Context { return context.WithValue(ctx, asideKey{}, true) }

// IsAside tells whether the call is made by Aside. Providers ask.
func IsAside(ctx context.Context) bool { return ctx.Value(asideKey{}) != nil }

type deadlineKey struct{}

// withDeadline fixes when a call must have answered.
func withDeadline(ctx context.Context) context.Context {
	if _, ok := ctx.Value(deadlineKey{}).(time.Time); ok {
		return ctx
	}
	return context.WithValue(ctx, deadlineKey{}, time.Now().Add(MaxWait))
}

func callDeadline(ctx context.Context) time.Time {
	if d, ok := ctx.Value(deadlineKey{}).(time.Time); ok {
		return d
	}
	return time.Now().Add(MaxWait)
}
