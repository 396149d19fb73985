package ingress

import (
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/entrance"
	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
	"wmproxy/internal/user"
	"wmproxy/socks"
	"wmproxy/tunnel"
	"wmproxy/tunnel/wire"
)

// association joins an application's association and the flow that carries it now.
type association struct {
	route  *Route
	app    entrance.Association
	user   *user.User
	byName bool // answers from a name that was sent to carry it
	flow   atomic.Pointer[flow]
	use    use
	ended  atomic.Bool
	// away is set if the flow is not of the preferred session; used is then when
	// the application last sent or got something.
	away atomic.Bool
	used atomic.Int64 // in ns since the Unix epoch

	mu   sync.Mutex    // one move at a time
	lost stats.Dropped // of the flows before this one; guarded by mu
}

// flow is one flow of an association, from the session's view.
type flow struct {
	*tunnel.Flow
	a *association
}

// open starts a flow over the user's session.
func (a *association) open() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.openLocked(a.session())
}

// session returns the session that the association's flow should be of, nil if there is none.
func (a *association) session() *tunnel.Session { return a.route.sessions.For(a.user) }

func (a *association) openLocked(s *tunnel.Session) bool {
	if s == nil {
		return false
	}
	f := &flow{a: a}
	opened, err := s.OpenFlow(f)
	if err != nil {
		return false
	}
	f.Flow = opened
	a.flow.Store(f)
	a.away.Store(false)
	if a.ended.Load() {
		f.End(tunnel.EndNormal)
	}
	return true
}

// move replaces from, if that still is the flow, by one over another session.
func (a *association) move(from *flow, to *tunnel.Session) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.flow.Load() != from || from.Session() == to || a.ended.Load() {
		return false
	}
	if !a.openLocked(to) {
		return false
	}
	a.lost.Add(from.Dropped())
	from.End(tunnel.EndNormal)
	return true
}

// Send takes datagrams from the application.
func (a *association) Send(ms []udpio.Message) {
	a.use.note()
	f := a.flow.Load()
	if s := a.session(); s != nil && f.Session() != s {
		f = a.reconsider(f, s)
	}
	if a.byName && f.Session().PeerFeatures().Has(wire.NamedAnswers) {
		askForNames(ms)
	}
	f.Send(ms)
}

// askForNames has the answers to datagrams that are sent to a name carry that name. The
// far end that does not know how to would drop them.
func askForNames(ms []udpio.Message) {
	for i := range ms {
		if b := ms[i].Body; len(ms[i].Head) == 0 && len(b) > 0 && b[0] == socks.TypeName {
			b[0] = wire.TypeNameAnswered
		}
	}
}

// reconsider is called with each batch while another session is preferred.
func (a *association) reconsider(f *flow, preferred *tunnel.Session) *flow {
	now := time.Now().UnixNano()
	if !a.away.Swap(true) {
		a.used.Store(now)
		return f
	}
	if used := a.used.Swap(now); now-used >= int64(idleReturn) {
		a.move(f, preferred)
	}
	return a.flow.Load()
}

// End is called when the application has ended the association.
func (a *association) End() {
	a.ended.Store(true)
	a.route.remove(a)
	a.flow.Load().End(tunnel.EndNormal)
	a.use.leave()
}

// Dropped returns how many datagrams the tunnel has dropped so far.
func (a *association) Dropped() stats.Dropped {
	a.mu.Lock()
	defer a.mu.Unlock()
	drops := a.lost
	drops.Add(a.flow.Load().Dropped())
	return drops
}

// Receive takes datagrams for the application, also those still under way on a
// flow that another has replaced.
func (f *flow) Receive(bodies [][]byte) {
	f.a.use.note()
	if f.a.away.Load() {
		f.a.used.Store(time.Now().UnixNano())
	}
	f.a.app.Deliver(bodies)
}

// Ended is called when the far end has ended the flow. A limit ends the
// association; after anything else the next datagram goes over a new flow.
func (f *flow) Ended(code tunnel.EndCode) {
	a := f.a
	a.mu.Lock()
	current := a.flow.Load() == f
	ok := true
	if current && code != tunnel.EndLimit {
		a.lost.Add(f.Dropped())
		ok = a.openLocked(a.session())
	}
	a.mu.Unlock()
	if current && (code == tunnel.EndLimit || !ok) {
		a.app.Close()
	}
}
