package ingress

import (
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/user"
	"wmproxy/tunnel"
)

// idleReturn is how long an association must have been silent for its next
// datagram to leave a server that is no longer preferred: nobody then minds
// that its address at the far end changes.
const idleReturn = 30 * time.Second

// Sessions chooses the session for what a user opens: on a client that with the preferred
// server, on a server that with the user's client.
type Sessions interface {
	// For returns the session for the user's new flows and streams, nil if there is none.
	// It is called for each batch of datagrams and must not wait.
	For(u *user.User) *tunnel.Session
}

var _ Sessions = (*tunnel.Registry)(nil)

// Preferred is the session that all users' flows and streams go to.
type Preferred struct {
	session atomic.Pointer[tunnel.Session]
}

// Set sends new flows and streams to s. Those that are open stay where they are; a flow
// follows when it has been idle.
func (p *Preferred) Set(s *tunnel.Session) { p.session.Store(s) }

// Is reports whether new flows and streams go to s.
func (p *Preferred) Is(s *tunnel.Session) bool { return p.session.Load() == s }

// For returns the session, whoever the user is.
func (p *Preferred) For(*user.User) *tunnel.Session { return p.session.Load() }

// Route takes what users open to their sessions. Sessions that a user may have in turn
// share their FlowNumbers.
type Route struct {
	sessions Sessions

	mu           sync.Mutex
	associations map[*association]struct{}
}

// NewRoute returns a route to the sessions.
func NewRoute(sessions Sessions) *Route {
	return &Route{sessions: sessions, associations: make(map[*association]struct{})}
}

// Leave moves every association of s to the session that its user has now, and returns
// how many there were.
func (r *Route) Leave(s *tunnel.Session) (moved int) {
	r.mu.Lock()
	var leaving []*association
	for a := range r.associations {
		if a.flow.Load().Session() == s {
			leaving = append(leaving, a)
		}
	}
	r.mu.Unlock()
	for _, a := range leaving {
		if to := a.session(); to != nil && a.move(a.flow.Load(), to) {
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
