package cloud

import (
	"fmt"
	"net/http"
	"sync"
	"time"
)

// clock compares this machine's with that of a service. Services do not let in
// who signs with a time that is minutes off, and some say no more than that the
// signature is wrong.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration // of the service's, as of the last answer
}

type clockKey struct{}

// tolerance is less than any service grants; an answer may have been on its way
// for some seconds.
const tolerance = 4 * time.Minute

func (c *clock) saw(resp *http.Response) {
	at, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead = time.Since(at)
}

// text says what is wrong with the clock; empty: nothing.
func (c *clock) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch off := c.ahead.Abs().Round(time.Minute); {
	case off <= tolerance:
		return ""
	case c.ahead > 0:
		return fmt.Sprintf("this machine's clock is %v ahead of the service's, which does not let in who is so far off; set it", off)
	default:
		return fmt.Sprintf("this machine's clock is %v behind the service's, which does not let in who is so far off; set it", off)
	}
}
