package status

import (
	"strings"
	"sync"
	"time"
)

const (
	// keptEvents is how many events are remembered.
	keptEvents = 10

	// maxEvent bounds an event in bytes: a part of it may be the peer's words.
	maxEvent = 400
)

// Events is the last events. The zero value works, from any goroutine; no method waits.
type Events struct {
	mu   sync.Mutex
	ring [keptEvents]Event
	n    int // all there ever were
}

// Note adds an event of now.
func (e *Events) Note(what string) { e.Add(time.Now(), what) }

// Add adds an event.
func (e *Events) Add(at time.Time, what string) {
	if len(what) > maxEvent {
		what = strings.ToValidUTF8(what[:maxEvent], "") + "…"
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ring[e.n%keptEvents] = Event{At: at, What: what}
	e.n++
}

// List returns the events, oldest first.
func (e *Events) List() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]Event, 0, keptEvents)
	for i := max(0, e.n-keptEvents); i < e.n; i++ {
		list = append(list, e.ring[i%keptEvents])
	}
	return list
}
