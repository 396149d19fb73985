package client

import (
	"math/rand/v2"
	"time"
)

// backoff is the waits between attempts. They double up to lastBackoff, with a jitter of half
// either way, so that the clients of a restarted server do not return all at once. The zero
// value is ready to use.
type backoff struct {
	wait time.Duration
}

func (b *backoff) reset() { b.wait = 0 }

func (b *backoff) next() time.Duration {
	b.wait = min(max(2*b.wait, firstBackoff), lastBackoff)
	return b.wait/2 + rand.N(b.wait)
}
