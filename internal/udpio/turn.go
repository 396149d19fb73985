package udpio

import "sync/atomic"

// maxLoops bounds the event loops of the process.
const maxLoops = 4

// A Turn is called once after an event loop has read all the sockets that were
// ready, however many of them name it. Its user can so collect what many
// sockets received and wake whoever sends it once.
type Turn struct {
	over func()
	// pending names the loop that has this Turn on its list, by the loop's index.
	// A loop that is ending may still share the index with its successor, hence
	// the pointer: the worst that can come of it is one call too many.
	pending [maxLoops]atomic.Pointer[loop]
}

// NewTurn makes a Turn that calls over, which must not wait. Sockets that share
// the Turn may be spread over several loops, so over may run on several
// goroutines at once; and it may run once more after a socket was closed.
func NewTurn(over func()) *Turn { return &Turn{over: over} }
