package queue

import (
	"time"
)

const (
	// maxQueueBytes bounds what one session has waiting to be sent, in bytes.
	maxQueueBytes = 2 << 20

	// maxDetachedBytes is the same while no carrier is attached: hardly any of it will
	// be young enough when one comes, and a server may hold many such sessions.
	maxDetachedBytes = 64 << 10

	// maxAge is how long a datagram may wait; an older one is of no use to a
	// call or a game and is dropped when its turn comes.
	maxAge = 120 * time.Millisecond

	// quantum is how many bytes a flow sends before it is the next one's turn.
	quantum = 1500

	// smallRoom is the share of a bundle, as a divisor, that is left empty or padded
	// when the next datagram does not fit: a seventh. A larger room gets the
	// datagram's first fragment.
	smallRoom = 7

	// congestedAfter is how long the next datagram must have waited for the path to
	// count as the limit. Then bytes are dearer than system calls: no padding.
	congestedAfter = 5 * time.Millisecond

	// packetOverhead is what a waiting datagram counts beside its own bytes.
	packetOverhead = 64
)
