package daytona

import (
	"bufio"
	"context"
	"io"
	"strings"
	"sync"
	"time"

	"berth/sandbox"
)

type logReader = io.ReadCloser

// follower reads the log of a build while it is written. The platform's stream of
// a build that failed may never end, so whoever knows that it has ended drains
// and closes it. A nil follower has read nothing.
type follower struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu   sync.Mutex
	kept strings.Builder
	last time.Time // when the last line came
}

// maxFollowed bounds what is kept of a log, in bytes.
const maxFollowed = 4 << 20

// follow begins to read what open opens. Lines are told to whoever waits: as
// lines of a build's log, or else only as how far things are.
func (p *Provider) follow(ctx context.Context, open func(context.Context) (logReader, error), asLog bool) *follower {
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{cancel: cancel, done: make(chan struct{}), last: time.Now()}
	go func() {
		defer close(f.done)
		r, err := f.open(ctx, open, p.o.Times.Look)
		if err != nil {
			return // the build goes on without being watched
		}
		defer r.Close()
		lines := bufio.NewReaderSize(r, 64<<10)
		for {
			line, err := lines.ReadString('\n')
			if line != "" {
				line = plainLine(line)
				f.mu.Lock()
				f.last = time.Now()
				if f.kept.Len() < maxFollowed {
					f.kept.WriteString(line)
				}
				f.mu.Unlock()
				if text := strings.TrimRight(line, "\r\n"); asLog || text != "" {
					sandbox.Report(ctx, sandbox.Progress{Text: text, Log: asLog})
				}
			}
			if err != nil {
				return
			}
		}
	}()
	return f
}

// open waits until there is a log.
func (f *follower) open(ctx context.Context, open func(context.Context) (logReader, error), look time.Duration) (logReader, error) {
	for wait := look / 8; ; wait = min(2*wait, look) {
		r, err := open(ctx)
		if err == nil {
			return r, nil
		}
		if perr := pause(ctx, wait); perr != nil {
			return nil, err
		}
	}
}

// drain waits, once the build has ended, for what of its log is under way.
func (f *follower) drain() {
	if f == nil {
		return
	}
	const quiet, most = 2 * time.Second, 15 * time.Second
	for end := time.Now().Add(most); time.Now().Before(end); {
		select {
		case <-f.done:
			return
		case <-time.After(100 * time.Millisecond):
		}
		f.mu.Lock()
		silent := time.Since(f.last)
		f.mu.Unlock()
		if silent > quiet {
			return
		}
	}
}

func (f *follower) close() {
	if f == nil {
		return
	}
	f.cancel()
	<-f.done
}

func (f *follower) text() string {
	if f == nil {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kept.String()
}

// why is the end of the log, to be put after the reason of a failure.
func (f *follower) why() string {
	f.drain()
	text := strings.TrimSpace(tail(f.text(), 2000))
	if text == "" {
		return ""
	}
	return "; the end of its log:\n" + text
}
