package netsim

import (
	"math/rand/v2"
	"sync"
	"time"

	"wmproxy/internal/notify"
)

// bundles are those under way in one direction: a ring of slots with buffers that are used again.
type bundles struct {
	done   <-chan struct{} // of the connection
	config Config

	mu    sync.Mutex
	slots []slot
	head  int // first slot in use: first the lent ones, then the queued
	lent  int // returned by the last receive
	used  int // lent and queued

	arrived notify.Signal // the queue changed
	room    notify.Signal // slots came free

	dice *rand.Rand
	idle time.Time   // when the last bundle has left, where Rate counts
	due  *time.Timer // the receiver's
}

type slot struct {
	b   []byte
	due time.Time // zero is at once
}

func newBundles(done <-chan struct{}, config Config) *bundles {
	queue := config.Queue
	if queue <= 0 {
		queue = maxBundles
	}
	return &bundles{
		done: done, config: config,
		slots:   make([]slot, queue),
		arrived: notify.New(), room: notify.New(),
		dice: rand.New(rand.NewPCG(config.Seed, 1)),
	}
}

func (q *bundles) lose(share float64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.config.Loss = share
}

// slot returns the i-th slot in use.
func (q *bundles) slot(i int) *slot { return &q.slots[(q.head+i)%len(q.slots)] }

// send copies b into the queue; false means that the pipe has ended.
func (q *bundles) send(b []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	lost := q.config.Loss > 0 && q.dice.Float64() < q.config.Loss
	for {
		select {
		case <-q.done:
			return false
		default:
		}
		if lost {
			return true
		}
		if q.used < len(q.slots) {
			break
		}
		if q.config.Lossy {
			return true
		}
		q.mu.Unlock()
		select {
		case <-q.room:
		case <-q.done:
		}
		q.mu.Lock()
	}
	s := q.slot(q.used)
	s.b = append(s.b[:0], b...)
	s.due = q.arrival(len(b))
	q.used++
	q.sortIn()
	q.arrived.Wake()
	return true
}

// arrival is when a bundle of n bytes that is sent now gets there.
func (q *bundles) arrival(n int) time.Time {
	if q.config.Delay == 0 && q.config.Jitter == 0 && q.config.Rate == 0 {
		return time.Time{}
	}
	at := time.Now()
	if q.config.Rate > 0 {
		if q.idle.After(at) {
			at = q.idle
		}
		at = at.Add(time.Duration(n) * time.Second / time.Duration(q.config.Rate))
		q.idle = at
	}
	at = at.Add(q.config.Delay)
	if q.config.Jitter > 0 {
		at = at.Add(time.Duration(q.dice.Int64N(int64(q.config.Jitter) + 1)))
	}
	return at
}

// sortIn puts the newest slot in its place: before those that are due later where
// jitter may reorder, else last, and not due before the one in front of it.
func (q *bundles) sortIn() {
	for i := q.used - 1; i > q.lent; i-- {
		before, s := q.slot(i-1), q.slot(i)
		if !before.due.After(s.due) {
			return
		}
		if !q.config.Lossy {
			s.due = before.due
			return
		}
		*before, *s = *s, *before
	}
}

// receive lends out what is due, until the next call; false means that the pipe has ended.
func (q *bundles) receive(dst [][]byte) (int, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.head = (q.head + q.lent) % len(q.slots)
	q.used -= q.lent
	if q.lent > 0 {
		q.room.Wake()
	}
	q.lent = 0
	for len(dst) > 0 {
		select {
		case <-q.done:
			return 0, false
		default:
		}
		var wait time.Duration
		for q.lent < min(q.used, len(dst)) {
			s := q.slot(q.lent)
			if !s.due.IsZero() {
				if wait = time.Until(s.due); wait > 0 {
					break
				}
			}
			dst[q.lent] = s.b
			q.lent++
		}
		if q.lent > 0 {
			break
		}
		q.await(wait)
	}
	return q.lent, true
}

// await waits for a change, or for wait where that is not 0.
func (q *bundles) await(wait time.Duration) {
	var due <-chan time.Time
	if wait > 0 {
		if q.due == nil {
			q.due = time.NewTimer(wait)
		} else {
			q.due.Reset(wait)
		}
		due = q.due.C
	}
	q.mu.Unlock()
	select {
	case <-q.arrived:
	case <-due:
	case <-q.done:
	}
	q.mu.Lock()
	if q.due != nil {
		q.due.Stop()
	}
}
