package client

import (
	"math/rand/v2"
	"time"
)

// backoff is the waits between attempts: they double up to lastBackoff, each
// with jitter of a half either way, so that clients of a server that came back do not
// all come at once. The zero value works.
type backoff struct {
	wait time.Duration
}

func (b *backoff) reset() { b.wait = 0 }

func (b *backoff) next() time.Duration {
	b.wait = min(max(2*b.wait, firstBackoff), lastBackoff)
	return b.wait/2 + rand.N(b.wait)
}
