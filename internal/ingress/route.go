package ingress

import (
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/tunnel"
)

// idleReturn is how long an association must have been silent for its next
// datagram to leave a server that is no longer preferred: nobody then minds
// that its address at the far end changes.
const idleReturn = 30 * time.Second

// Route is where what applications open goes: a session for each server, one of
// them preferred. Sessions of one Route share their FlowNumbers.
type Route struct {
	preferred atomic.Pointer[tunnel.Session]

	mu           sync.Mutex
	associations map[*association]struct{}
}

// NewRoute returns a route to s.
func NewRoute(s *tunnel.Session) *Route {
	r := &Route{associations: make(map[*association]struct{})}
	r.preferred.Store(s)
	return r
}

// Prefer sends new flows and streams to s. Those that are open stay where they
// are; a flow follows when it has been idle.
func (r *Route) Prefer(s *tunnel.Session) { r.preferred.Store(s) }

// Prefers reports whether new flows and streams go to s.
func (r *Route) Prefers(s *tunnel.Session) bool { return r.preferred.Load() == s }

// Leave moves every association of s to the preferred session and returns how
// many there were.
func (r *Route) Leave(s *tunnel.Session) (moved int) {
	to := r.preferred.Load()
	if to == s {
		return 0
	}
	r.mu.Lock()
	var leaving []*association
	for a := range r.associations {
		if a.flow.Load().Session() == s {
			leaving = append(leaving, a)
		}
	}
	r.mu.Unlock()
	for _, a := range leaving {
		if a.move(a.flow.Load(), to) {
			moved++
		}
	}
	return moved
}

func (r *Route) add(a *association) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.associations[a] = struct{}{}
}

func (r *Route) remove(a *association) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.associations, a)
}
