package mounts

// Where bucketd runs inside of a sandbox, as at Daytona, it also keeps what is
// mounted there: "bucketd order FILE" carries out an Order, "bucketd list DIR" tells
// of all Standings, and "bucketd leave DIR" unmounts all. Each answers with one
// Answer, as a line of JSON that begins with AnswerMark.

// AnswerMark begins an Answer's line: what runs a command may print more.
const AnswerMark = "bucketd-answer "

// Order is one mount inside that is to be made, or with Remove to go. Its file is
// secret as the Job is; bucketd deletes it once it has read it.
type Order struct {
	// Dir is where the Standings are kept: a directory of bucketd's user alone.
	Dir string `json:"dir"`
	// Path of the mount: absolute and clean.
	Path string `json:"path"`
	// User owns the mount and its new directories; empty: who runs bucketd.
	User string `json:"user,omitempty"`
	// Print tells orders apart. The same again does nothing where the mount answers.
	Print string `json:"print,omitempty"`
	// Wanted keeps a Standing with the reason where the mount fails.
	Wanted bool `json:"wanted,omitempty"`
	// Refused, when it is not empty, is why nothing may be mounted there any more:
	// what is, is unmounted, and Refused becomes the Standing's reason.
	Refused string `json:"refused,omitempty"`
	// Remove unmounts, and forgets the Standing.
	Remove bool `json:"remove,omitempty"`
	Job    Job  `json:"job"`
}

// Standing is how one mount inside stands.
type Standing struct {
	Path    string `json:"path"`
	Mounted bool   `json:"mounted"`
	Reason  string `json:"reason,omitempty"` // why it is not
	Entries int    `json:"entries"`
	More    bool   `json:"more,omitempty"`
}

// AnswerError says what kind of error an Answer has.
type AnswerError string

// The kinds of errors.
const (
	AnswerFault       AnswerError = "fault"       // the bucket's: Answer.Fault
	AnswerMountpoint  AnswerError = "mountpoint"  // nothing can be mounted there, or not be unmounted
	AnswerUnsupported AnswerError = "unsupported" // the sandbox cannot mount
	AnswerOther       AnswerError = "other"
)

// Answer is what bucketd says.
type Answer struct {
	Standings []Standing  `json:"standings,omitempty"`
	Error     AnswerError `json:"error,omitempty"`
	Message   string      `json:"message,omitempty"` // for people; no secret
	Fault     *Fault      `json:"fault,omitempty"`
}
