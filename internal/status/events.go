package status

import (
	"strings"
	"sync"
	"time"
)

const (
	// maxEvents bounds the events in a list.
	maxEvents = 10

	// maxEvent bounds an event in bytes: it may quote the peer.
	maxEvent = 400
)

// Events is the last events. The zero value is ready to use, by many goroutines.
type Events struct {
	mu   sync.Mutex
	ring [maxEvents]Event
	n    int // events so far
}

// Note adds an event with the current time.
func (e *Events) Note(what string) { e.add(time.Now(), what) }

// add adds an event.
func (e *Events) add(at time.Time, what string) {
	if len(what) > maxEvent {
		what = strings.ToValidUTF8(what[:maxEvent], "") + "…"
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ring[e.n%maxEvents] = Event{At: at, What: what}
	e.n++
}

// List returns the events, oldest first.
func (e *Events) List() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]Event, 0, maxEvents)
	for i := max(0, e.n-maxEvents); i < e.n; i++ {
		list = append(list, e.ring[i%maxEvents])
	}
	return list
}
