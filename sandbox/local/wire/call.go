package wire

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"strconv"
	"strings"
)

// A resident is box inside of a foreign sandbox: a monitor and an init in one
// program, which runs there as an ordinary process and makes no walls. Nothing
// reaches it but the platform's own way to run one command, of which only text
// comes back. So each request is a run of `box call`, which takes a Call from its
// environment, asks the resident through its socket, and prints an Answer.

// CallVersion of Call and Answer, of the ops that only residents know, and of the
// files in a resident's directory, whose name ends in it. A resident outlives the
// berth that started it: a newer berth speaks to it in its version, or starts one
// of its own version beside it.
const CallVersion = 1

// CallVariable is the environment variable that box call finds its Call in. Not
// its arguments: those are everybody's to see.
const CallVariable = "BERTH_CALL"

// PrebakedName is where an image can have box, so that it need not be brought.
const PrebakedName = "/usr/local/lib/berth/box"

// Call is one run of box call. It does what its fields say, in this order.
type Call struct {
	// ID of the request, which the answer repeats. A request that is sent again
	// has its first ID, and is not carried out twice.
	ID string `json:"id"`
	// Again: it was sent before, and what became of it is not known.
	Again bool `json:"again,omitempty"`
	// Sandbox names the state: a copy of a sandbox has its files, and the state of
	// the other one is not its own.
	Sandbox string `json:"sandbox"`
	// Base is the directory that residents live below; empty: the first of Bases
	// that has one.
	Base string `json:"base,omitempty"`

	Facts *CallFacts `json:"facts,omitempty"`
	Start *CallStart `json:"start,omitempty"`
	Reach *CallReach `json:"reach,omitempty"`

	// At most one of these acts; data goes with Spawn, Stdin and File.
	Spawn  *Command    `json:"spawn,omitempty"`
	Stdin  *Stdin      `json:"stdin,omitempty"`
	Resize *Resize     `json:"resize,omitempty"`
	Kill   *Kill       `json:"kill,omitempty"`
	Stop   *Stop       `json:"stop,omitempty"`
	Forget *ProcessRef `json:"forget,omitempty"`
	Remove *Remove     `json:"remove,omitempty"`
	Rename *Rename     `json:"rename,omitempty"`
	Permit *Permit     `json:"permit,omitempty"`
	File   *CallFile   `json:"file,omitempty"`
	List   bool        `json:"list,omitempty"`
	Usage  bool        `json:"usage,omitempty"`
	Watch  *CallWatch  `json:"watch,omitempty"`
}

// CallWatch waits for process ID and answers its state and output.
type CallWatch struct {
	ID string `json:"id"`
	// WaitMS bounds the wait for more than Stdout and Stderr, or for the exit
	// alone; 0: no wait. With SettleMS it goes on, after output has come, until
	// that pauses for so long, at most eight times as long in all.
	WaitMS   int64 `json:"wait_ms,omitempty"`
	ExitOnly bool  `json:"exit_only,omitempty"`
	SettleMS int64 `json:"settle_ms,omitempty"`
	// Stdout and Stderr are where the output that is answered begins; Most bounds
	// its bytes, stdout first. Where that is not all, and Ends is set, it is the
	// first fifth of Most of each stream and its end instead.
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
	Most   int64 `json:"most,omitempty"`
	Ends   bool  `json:"ends,omitempty"`
	// Bare leaves the state out where it need not be known.
	Bare bool `json:"bare,omitempty"`
}

// CallFacts asks for Facts. It needs no resident.
type CallFacts struct {
	Programs []string `json:"programs,omitempty"` // to look for on the PATH
	// WaitMS bounds the wait for a resident that is just being started.
	WaitMS int64 `json:"wait_ms,omitempty"`
}

// CallStart starts a resident, unless one runs.
type CallStart struct {
	Build        string `json:"build"` // recorded, to tell builds of box apart
	LogBytes     int64  `json:"log_bytes,omitempty"`
	KeepLogBytes int64  `json:"keep_log_bytes,omitempty"`
	Keep         int    `json:"keep,omitempty"` // finished processes
}

// CallReach asks whether a TCP connection to Address ("1.2.3.4:80") can be made.
type CallReach struct {
	Address string `json:"address"`
	WaitMS  int64  `json:"wait_ms"`
}

// The kinds of CallFile.
const (
	FileStat    = "stat"
	FileReadDir = "readdir"
	FileRead    = "read"
	FileWrite   = "write"
	FileMkdir   = "mkdir"
	FileSymlink = "symlink"
)

// CallFile is an operation on a file.
type CallFile struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
	User string `json:"user,omitempty"`
	// Read: Most bytes from At on. The file stays open under Token when that is not
	// its end, and is found by it then, whatever has become of Path. Most 0 ends it.
	Token string `json:"token,omitempty"`
	At    int64  `json:"at,omitempty"`
	Most  int64  `json:"most,omitempty"`
	// Write: the bytes are the call's data, or Size bytes with the sum Sum in the
	// file Staged, which is removed.
	Append bool   `json:"append,omitempty"`
	Mode   int64  `json:"mode,omitempty"` // permission bits; -1: keep, or 0644
	Staged string `json:"staged,omitempty"`
	Size   int64  `json:"size,omitempty"`
	Sum    uint32 `json:"sum,omitempty"`
	Target string `json:"target,omitempty"` // Symlink
}

// Answer of a Call. Its data is what Pieces say, in order, or a file's bytes.
type Answer struct {
	ID    string `json:"id"`
	Error *Error `json:"error,omitempty"`

	Facts     *Facts      `json:"facts,omitempty"`
	Process   *Process    `json:"process,omitempty"`
	Pieces    []CallPiece `json:"pieces,omitempty"`
	Processes []Process   `json:"processes,omitempty"`
	Usage     *Usage      `json:"usage,omitempty"`
	File      *File       `json:"file,omitempty"`
	Files     *Files      `json:"files,omitempty"`
	Fresh     bool        `json:"fresh,omitempty"` // there was no such file
	More      bool        `json:"more,omitempty"`  // of the file
	Bytes     int64       `json:"bytes,omitempty"` // written
	Reached   bool        `json:"reached,omitempty"`
}

// CallPiece is Size bytes of a stream from offset At on; with Size 0 nothing is
// kept before At.
type CallPiece struct {
	Stderr bool  `json:"stderr,omitempty"`
	At     int64 `json:"at"`
	Size   int64 `json:"size"`
}

// Facts about the sandbox, and about its resident.
type Facts struct {
	User    string `json:"user"`
	UID     int    `json:"uid"`
	GID     int    `json:"gid"`
	Home    string `json:"home"`
	Cwd     string `json:"cwd"`
	Arch    string `json:"arch"`   // as Go names it
	Kernel  string `json:"kernel"` // release
	Program string `json:"program"`
	// Programs are those found of CallFacts.Programs, with their paths.
	Programs map[string]string `json:"programs,omitempty"`
	Resident *Resident         `json:"resident,omitempty"`
}

// Resident tells of one that runs, and is the record that it keeps in its directory.
type Resident struct {
	Version int    `json:"version"`
	Build   string `json:"build"`
	Program string `json:"program"`
	Base    string `json:"base"`
	PID     int    `json:"pid"`
	Started int64  `json:"started"`
}

// Codes of errors that box call itself has.
const (
	CodeNoResident = "no_resident" // none runs; nothing was done
	CodeMaybe      = "maybe"       // what became of the request will never be known
	CodeStdinMoved = "stdin_moved" // Stdin.At is not where stdin is; Path is, in decimal digits
	CodeDied       = "died"        // the resident died at its start
	CodeTorn       = "torn"        // the call did not come whole; nothing was done
)

// castagnoli is the sum of calls, answers and staged files: it finds what was cut
// off, dropped or added on the way. Nobody hostile is there.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum continues a checksum, which begins as 0, with p.
func Sum(sum uint32, p []byte) uint32 { return crc32.Update(sum, castagnoli, p) }

// The text of an answer is answerMark, the payload's length, ":", the payload in
// base64, ":", its sum and answerEnd. It is searched for in whatever a shell has
// printed besides, and white space in it does not count.
const (
	answerMark = "<berth-box "
	answerEnd  = ">"
)

// EncodeCall makes c and its data the value of CallVariable.
func EncodeCall(c *Call, data []byte) (string, error) {
	p, err := EncodeCallFile(c, data)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(p) + "." + hex8(Sum(0, p)), nil
}

// EncodeCallFile makes c and its data the bytes of a file, for one that is too
// long for a variable, which then holds CallFileValue.
func EncodeCallFile(c *Call, data []byte) ([]byte, error) {
	head, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return pack(head, data), nil
}

// CallFileValue is the value of CallVariable for a call p that lies at path.
func CallFileValue(path string, p []byte) string {
	return "@" + path + "." + hex8(Sum(0, p))
}

// ErrTorn is the error of text that did not come whole.
var ErrTorn = errors.New("it did not come whole")

// DecodeCall reads what EncodeCall or CallFileValue made; readFile reads, and
// removes, the file of the latter.
func DecodeCall(value string, readFile func(string) ([]byte, error)) (*Call, []byte, error) {
	at := strings.LastIndexByte(value, '.')
	if at < 0 {
		return nil, nil, ErrTorn
	}
	text, sum := value[:at], value[at+1:]
	var p []byte
	var err error
	if name, ok := strings.CutPrefix(text, "@"); ok {
		p, err = readFile(name)
	} else {
		p, err = base64.RawURLEncoding.DecodeString(text)
	}
	if err != nil || hex8(Sum(0, p)) != sum {
		return nil, nil, ErrTorn
	}
	c := &Call{}
	data, err := unpack(p, c)
	return c, data, err
}

// EncodeAnswer makes the text of a and its data.
func EncodeAnswer(a *Answer, data []byte) ([]byte, error) {
	head, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	p := pack(head, data)
	out := make([]byte, 0, len(answerMark)+32+base64.StdEncoding.EncodedLen(len(p)))
	out = append(out, '\n') // whatever was printed before
	out = append(out, answerMark...)
	out = strconv.AppendInt(out, int64(len(p)), 10)
	out = append(out, ':')
	out = base64.StdEncoding.AppendEncode(out, p)
	out = append(out, ':')
	out = append(out, hex8(Sum(0, p))...)
	return append(out, answerEnd+"\n"...), nil
}

// DecodeAnswer finds the answer to the call id in what a command printed.
func DecodeAnswer(text, id string) (*Answer, []byte, error) {
	for {
		at := strings.Index(text, answerMark)
		if at < 0 {
			return nil, nil, ErrTorn
		}
		text = text[at+len(answerMark):]
		if a, data, ok := decodeAnswer(text); ok && a.ID == id {
			return a, data, nil
		}
	}
}

func decodeAnswer(text string) (*Answer, []byte, bool) {
	end := strings.Index(text, answerEnd)
	if end < 0 {
		return nil, nil, false
	}
	text = text[:end]
	if strings.ContainsAny(text, " \t\r\n") {
		text = strings.Join(strings.Fields(text), "")
	}
	size, rest, ok1 := strings.Cut(text, ":")
	body, sum, ok2 := strings.Cut(rest, ":")
	if !ok1 || !ok2 {
		return nil, nil, false
	}
	p, err := base64.StdEncoding.DecodeString(body)
	if err != nil || strconv.Itoa(len(p)) != size || hex8(Sum(0, p)) != sum {
		return nil, nil, false
	}
	a := &Answer{}
	data, err := unpack(p, a)
	return a, data, err == nil
}

// pack joins a JSON part and raw data as frames do.
func pack(head, data []byte) []byte {
	p := make([]byte, 4, 4+len(head)+len(data))
	binary.BigEndian.PutUint32(p, uint32(len(head)))
	return append(append(p, head...), data...)
}

func unpack(p []byte, v any) ([]byte, error) {
	if len(p) < 4 {
		return nil, ErrTorn
	}
	n, rest := binary.BigEndian.Uint32(p), p[4:]
	if int64(n) > int64(len(rest)) {
		return nil, ErrTorn
	}
	if err := json.Unmarshal(rest[:n], v); err != nil {
		return nil, ErrTorn
	}
	return rest[n:], nil
}

func hex8(n uint32) string {
	const digits = "0123456789abcdef"
	var b [8]byte
	for i := range b {
		b[i] = digits[n>>(28-4*i)&15]
	}
	return string(b[:])
}
