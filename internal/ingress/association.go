package ingress

import (
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/udpio"
	"wmproxy/socks"
	"wmproxy/tunnel"
)

// association joins a SOCKS5 association and the flow that carries it now.
type association struct {
	route  *Route
	socks  *socks.Association
	byName bool // answers from a name that was sent to carry it
	leg    atomic.Pointer[leg]
	use    use
	over   atomic.Bool
	// away says that the flow is not of the preferred session; used is then when
	// the application last sent or got something.
	away atomic.Bool
	used atomic.Int64 // in ns since the Unix epoch

	mu   sync.Mutex   // one move at a time
	lost tunnel.Drops // of the flows before this one; guarded by mu
}

// leg is one flow of an association, from the session's view.
type leg struct {
	a    *association
	flow *tunnel.Flow
}

// open starts a flow over the preferred session.
func (a *association) open() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.openLocked(a.route.preferred.Load())
}

func (a *association) openLocked(s *tunnel.Session) bool {
	l := &leg{a: a}
	f, err := s.OpenFlow(l)
	if err != nil {
		return false
	}
	l.flow = f
	a.leg.Store(l)
	a.away.Store(false)
	if a.over.Load() {
		f.End(tunnel.EndNormal)
	}
	return true
}

// move replaces from, if that still is the flow, by one over another session.
func (a *association) move(from *leg, to *tunnel.Session) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leg.Load() != from || from.flow.Session() == to || a.over.Load() {
		return false
	}
	if !a.openLocked(to) {
		return false
	}
	a.lost.Add(from.flow.Drops())
	from.flow.End(tunnel.EndNormal)
	return true
}

// Send takes datagrams from the application.
func (a *association) Send(ms []udpio.Message) {
	a.use.note()
	l := a.leg.Load()
	if s := a.route.preferred.Load(); l.flow.Session() != s {
		l = a.reconsider(l, s)
	}
	if a.byName && l.flow.Session().PeerFeatures().Has(tunnel.NamedAnswers) {
		askForNames(ms)
	}
	l.flow.Send(ms)
}

// askForNames has the answers to datagrams that are sent to a name carry that name. The
// far end that does not know how to would drop them.
func askForNames(ms []udpio.Message) {
	for i := range ms {
		if b := ms[i].Body; len(ms[i].Head) == 0 && len(b) > 0 && b[0] == socks.TypeName {
			b[0] = tunnel.TypeNameAnswered
		}
	}
}

// reconsider is called with each batch while another session is preferred.
func (a *association) reconsider(l *leg, preferred *tunnel.Session) *leg {
	now := time.Now().UnixNano()
	if !a.away.Swap(true) {
		a.used.Store(now)
		return l
	}
	if used := a.used.Swap(now); now-used >= int64(idleReturn) {
		a.move(l, preferred)
	}
	return a.leg.Load()
}

// End says that the application ended the association.
func (a *association) End() {
	a.over.Store(true)
	a.route.remove(a)
	a.leg.Load().flow.End(tunnel.EndNormal)
	a.use.leave()
}

// DropAttrs is what the tunnel dropped, for the association's line in the log.
func (a *association) DropAttrs() []any {
	drops := a.drops()
	return drops.Attrs()
}

func (a *association) drops() tunnel.Drops {
	a.mu.Lock()
	defer a.mu.Unlock()
	drops := a.lost
	drops.Add(a.leg.Load().flow.Drops())
	return drops
}

// Receive takes datagrams for the application, also those still under way on a
// flow that another has replaced.
func (l *leg) Receive(bodies [][]byte) {
	l.a.use.note()
	if l.a.away.Load() {
		l.a.used.Store(time.Now().UnixNano())
	}
	l.a.socks.Deliver(bodies)
}

// Ended is the far end's word that the flow is no more. A limit ends the
// association; after anything else the next datagram goes over a new flow.
func (l *leg) Ended(code tunnel.EndCode) {
	a := l.a
	a.mu.Lock()
	current := a.leg.Load() == l
	ok := true
	if current && code != tunnel.EndLimit {
		a.lost.Add(l.flow.Drops())
		ok = a.openLocked(a.route.preferred.Load())
	}
	a.mu.Unlock()
	if current && (code == tunnel.EndLimit || !ok) {
		a.socks.Close()
	}
}
