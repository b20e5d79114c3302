package tools

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"berth/sandbox"
)

func TestNearest(t *testing.T) {
	known := []string{"command", "argv", "cwd", "env", "timeout_seconds", "wait_seconds", "session_id"}
	for name, want := range map[string]string{
		"timeout": "timeout_seconds", "Timeout-Seconds": "timeout_seconds", "waitSeconds": "wait_seconds", "commnad": "command",
		"sandbox_id": "session_id", "envs": "env", "x": "", "completely_different": "", strings.Repeat("a", 100_000): "",
	} {
		if got := nearest(name, known); got != want {
			t.Errorf("nearest(%.40q) = %q, want %q", name, got, want)
		}
	}
}

// What berth does not hold is not promised.
func TestNetworkOf(t *testing.T) {
	closed := &sandbox.NetworkPolicy{BlockAll: true}
	for _, c := range []struct {
		info sandbox.Info
		want string
	}{
		{sandbox.Info{Provider: "local"}, "not the host"},
		{sandbox.Info{Provider: "daytona"}, "what the platform lets every sandbox reach"},
		{sandbox.Info{Provider: "daytona", Spec: sandbox.Spec{Network: &sandbox.NetworkPolicy{}}}, "what the platform lets every sandbox reach"},
		{sandbox.Info{Provider: "daytona", Spec: sandbox.Spec{Network: closed}}, "blocked"},
		{sandbox.Info{Provider: "local", Spec: sandbox.Spec{Network: closed}, Guarantees: []sandbox.Guarantee{{Name: "network", State: sandbox.NotEnforced, Detail: "open"}}}, "open"},
	} {
		if got := networkOf(c.info); !strings.Contains(got, c.want) {
			t.Errorf("networkOf(%+v) = %q, want %q in it", c.info, got, c.want)
		}
	}
}

func TestLoneSurrogate(t *testing.T) {
	for raw, want := range map[string]bool{
		`"😀"`: false, `"\ud83d\ude00"`: false, `"\uD83D\uDE00x"`: false, `"\ud83d"`: true, `"\ud83dx"`: true, `"\ude00"`: true,
		`"\\ud83d"`: false, `"\\\ud83d"`: true, `"\ud83d\n"`: true, `"\ud83d\ud83d\ude00"`: true, `"\u00e9"`: false, `"\`: false, `"\u12`: false,
	} {
		if got := loneSurrogate([]byte(raw)); got != want {
			t.Errorf("loneSurrogate(%s) = %v", raw, got)
		}
	}
}

func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 s", 1234 * time.Microsecond: "0.001 s", 45 * time.Millisecond: "0.045 s", 210 * time.Millisecond: "0.2 s",
		time.Second: "1 s", 1040 * time.Millisecond: "1 s", 90 * time.Second: "90 s", 3 * time.Hour: "10800 s",
	} {
		if got := seconds(d); got != want {
			t.Errorf("seconds(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"a\x1b[31mred\x1b[0m b": "ared b", "\x1b]0;title\x07x": "x", "\x1b]8;;u\x1b\\link": "link", "10%\r20%\r\n": "10%\n20%\n",
		"bell\x07\x08": "bell", "tab\t": "tab\t", "\xff\xfe": "\uFFFD", "\x1b": "", "\x1b[3": "", "\x1b(Bx": "Bx",
	} {
		if got := plain([]byte(in)); got != want {
			t.Errorf("plain(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzCleaner(f *testing.F) {
	f.Add([]byte("a\x1b[1mb\r\nü\xff"), 3)
	f.Add([]byte("😀"), 2)
	f.Fuzz(func(t *testing.T, p []byte, cut int) {
		if cut < 0 || cut > len(p) {
			return
		}
		var c cleaner
		c.add(p[:cut])
		first := c.take(true)
		c.add(p[cut:])
		c.trim(100)
		for _, s := range []string{first, c.take(false), c.take(true)} {
			if !utf8.ValidString(s) || strings.ContainsAny(s, "\x1b\x00") {
				t.Errorf("%q gave %q", p, s)
			}
		}
		if c.len() > utf8.UTFMax {
			t.Errorf("%d bytes are held back", c.len())
		}
	})
}

func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type message struct {
			value float64
			text  string
			at    time.Duration
		}
		var got []message
		start := time.Now()
		p := &progress{tool: "execute_command", start: start, last: start, done: make(chan struct{}), drain: func() {}}
		p.send = func(m map[string]any) error {
			got = append(got, message{m["progress"].(float64), m["message"].(string), time.Since(start)})
			return nil
		}
		p.closed.Go(p.loop)
		time.Sleep(25 * time.Second)
		p.output()(sandbox.Output{Stdout: []byte("late\nprompt> ")})
		time.Sleep(2 * time.Second)
		p.finish()
		want := []message{{1, "execute_command: 10 s", 10 * time.Second}, {2, "execute_command: 20 s", 20 * time.Second},
			{3, "late", 25*time.Second + 100*time.Millisecond}, {4, "prompt> ", 0}}
		if len(got) != len(want) {
			t.Fatalf("messages %v", got)
		}
		for i, w := range want {
			if got[i].value != w.value || got[i].text != w.text || (w.at != 0 && (got[i].at-w.at).Abs() > 200*time.Millisecond) {
				t.Errorf("message %d is %v, want %v", i, got[i], w)
			}
		}
		var none *progress
		none.finish()
		if none.output() != nil {
			t.Error("output of no progress is not nil")
		}
	})
}

// A schema that cannot be compiled would refuse every call of its tool.
func TestEverySchemaCompiles(t *testing.T) {
	for _, b := range []buckets{{}, {inline: true, connections: []string{"s3", "archive"}}} {
		for _, def := range all(b) {
			if _, err := newValidator(def.name, def.args, def.shape(), def.unavailable).schema(); err != nil {
				t.Error(err)
			}
		}
	}
}

func BenchmarkDecodeLargeWrite(b *testing.B) {
	def := writeFile()
	v := newValidator(def.name, def.args, shape{}, nil)
	raw := []byte(`{"path":"f","content":"` + strings.Repeat("line of text\\n", 500_000) + `"}`)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := v.decode(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeCommand(b *testing.B) {
	def := executeCommand()
	v := newValidator(def.name, def.args, shape{}, nil)
	raw := []byte(`{"command":"true","session_id":"s","timeout_seconds":3}`)
	for b.Loop() {
		if _, err := v.decode(raw); err != nil {
			b.Fatal(err)
		}
	}
}
