package pipe

import (
	"sync"

	"wmproxy/internal/notify"
)

// bundles are the bundles under way in one direction: a ring of buffers that are used again.
type bundles struct {
	done <-chan struct{} // of the pipe

	mu   sync.Mutex
	ring [maxBundles][]byte
	head int // the first in use: first the lent ones, then the queued
	lent int // returned by the last receive
	used int // lent and queued

	arrived notify.Signal // the queue changed
	room    notify.Signal // buffers came free
}

func newBundles(done <-chan struct{}) *bundles {
	return &bundles{done: done, arrived: notify.New(), room: notify.New()}
}

// send copies b into the queue, and waits while that is full; false means that the pipe has ended.
func (q *bundles) send(b []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.used == len(q.ring) && q.await(q.room) {
	}
	if q.ended() {
		return false
	}
	at := &q.ring[(q.head+q.used)%len(q.ring)]
	*at = append((*at)[:0], b...)
	q.used++
	q.arrived.Wake()
	return true
}

// receive lends out what has arrived, until the next call; false means that the pipe has ended.
func (q *bundles) receive(dst [][]byte) (int, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lent > 0 {
		q.head = (q.head + q.lent) % len(q.ring)
		q.used -= q.lent
		q.lent = 0
		q.room.Wake()
	}
	if len(dst) == 0 {
		return 0, true
	}
	for q.used == 0 && q.await(q.arrived) {
	}
	if q.ended() {
		return 0, false
	}
	for q.lent < min(q.used, len(dst)) {
		dst[q.lent] = q.ring[(q.head+q.lent)%len(q.ring)]
		q.lent++
	}
	return q.lent, true
}

// await waits for a change, without the lock; false means that the pipe has ended.
func (q *bundles) await(change notify.Signal) bool {
	q.mu.Unlock()
	defer q.mu.Lock()
	select {
	case <-change:
		return true
	case <-q.done:
		return false
	}
}

func (q *bundles) ended() bool {
	select {
	case <-q.done:
		return true
	default:
		return false
	}
}
