package tunnel

import (
	"time"
)

const (
	// budgetInterval is the time between two looks at the memory in use while there
	// are streams, and budgetIdle without. A 1 Gbit/s peer brings 12 MiB in between.
	budgetInterval = 100 * time.Millisecond
	budgetIdle     = 250 * time.Millisecond

	// scanEvery is after how many looks the peers' holdings are summed up although
	// the heap is small: the kernel may hold more than the heap does.
	scanEvery = 5

	// collectInterval is the least time between two collections that a Budget forces.
	collectInterval = 500 * time.Millisecond

	// settling is the time between a reset and the next, in which its memory is freed.
	settling = 250 * time.Millisecond

	// A user who lost something gets no new streams for minPenalty, and twice as long
	// each further time, up to maxPenalty. It is forgotten after as long again.
	minPenalty = 2 * time.Second
	maxPenalty = time.Minute

	// budgetStalled is how long the application has not read or written a stream when a
	// Budget counts the stream as stalled.
	budgetStalled = time.Second

	// streamCost and carrierCost are the least that a stream and a carrier hold, in
	// bytes: buffers, stacks, TLS.
	streamCost  = 32 << 10
	carrierCost = 128 << 10

	// quicFrameCost is the factor by which quic-go's memory may exceed the payload that it
	// holds: it keeps a buffer of 1,452 bytes for each frame of at least 128 (v0.65.0).
	quicFrameCost = 12
)

const (
	// maxPerKind bounds the carriers of one kind in a session, but for those that
	// have streams, which maxWithStreams bounds with them.
	maxPerKind     = 2
	maxWithStreams = 4
)

// retireGrace is the time for which a carrier that is not needed any more is kept, so that data
// under way on it arrives.
const retireGrace = 500 * time.Millisecond

const (
	// maxPendingEnds bounds the ends that wait for an acknowledgement. Past it the
	// oldest is forgotten; the peer's idle timeout frees that flow.
	maxPendingEnds = 1 << 16

	// maxEndsPerMessage keeps an End message below maxMessage.
	maxEndsPerMessage = 200

	// maxEndNumber is the largest number of an end that can be acknowledged.
	maxEndNumber = 1<<62 - 1
)

// MaxFlows bounds the flows of one session.
const MaxFlows = 1 << 16

const (
	// maxPongs bounds the pings that wait for their answer; an honest client has
	// no more open than it sends in a round trip, and the newest matter.
	maxPongs = 8

	// asleepAfter is how much further than the steady clock, which stops in suspend, the wall
	// clock must have moved between two heartbeats for the machine to have slept, and how
	// late one must come for the process to have stood still.
	asleepAfter = 3 * time.Second
)

const (
	// receiveBatch is how many bundles are taken from a carrier at once.
	receiveBatch = 32

	// streamShare is the part of a packet, as a divisor, that bundles leave to streams
	// and control where the path is the limit, on QUIC, which sends datagrams before
	// all else: of each packet while there is a stream, of one in controlEvery else.
	streamShare  = 8
	controlEvery = 8
)

const (
	// maxSessions bounds the sessions of one server.
	maxSessions = 4096

	// maxHeld bounds those of one user that nothing is attached to: a client that
	// starts again and again makes a new one each time. Several clients may share a user.
	maxHeld = 16

	// maxUserSessions bounds those of one user, who else could push out all others'.
	maxUserSessions = maxSessions / 4
)

const (
	// attachWait is how long a new stream waits while nothing is attached.
	attachWait = 5 * time.Second

	// goAwayWait bounds the wait for the last control message when a session ends.
	goAwayWait = 250 * time.Millisecond

	// unknownFlowInterval is the least time between two answers to datagrams of a
	// flow that we do not have.
	unknownFlowInterval = 10 * time.Millisecond
)

const (
	// MaxStreams bounds the streams that one session's peer may have open.
	MaxStreams = 2048

	// streamHeaderTimeout bounds the wait for a stream's header.
	streamHeaderTimeout = 10 * time.Second
)

// maxAsked is how often the peer is asked for one stream.
const maxAsked = 2
