package client

import (
	"context"
	"sync"
	"time"

	"wmproxy/internal/link"
	"wmproxy/internal/transports"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

const (
	// dialTimeout bounds an attempt to connect to an address, TLS included.
	dialTimeout = 5 * time.Second

	firstBackoff = 250 * time.Millisecond
	lastBackoff  = 30 * time.Second

	// refusedBackoff is the wait after a refusal that will hardly change by itself.
	refusedBackoff = 60 * time.Second

	// briefLife is the lifetime after which the attach of a carrier counts as a success: one
	// that ends at once, again and again, must not be dialed without pause.
	briefLife = time.Second

	// steadyAfter is the same for a carrier that became suspect: the server answers, and the
	// path is at fault.
	steadyAfter = 10 * time.Second
)

// upstream is a server: its link, and the session with it.
type upstream struct {
	link    link.Link
	session *tunnel.Session
	status  *statusLine
	options transports.Options

	// connect dials the server: u.dial, except in tests.
	connect func(context.Context, carrier.Kind) (carrier.Pending, error)

	mu   sync.Mutex
	back chan struct{} // closed and made anew when the server is back
	last time.Time     // when a carrier attached
}

// keep keeps a good carrier of the kind attached, with room for streams, until ctx ends. It dials
// another one beside a suspect one. It calls refused if the server refuses the client for good and
// has never accepted it.
func (u *upstream) keep(ctx context.Context, kind carrier.Kind, refused func()) {
	var failures, relapses backoff
	for u.awaitNeed(ctx, kind) {
		back := u.comeback()
		a, err := u.attachOnce(ctx, kind)
		var wait time.Duration
		if err == nil {
			began := time.Now()
			if !u.awaitEnd(ctx, a, kind) {
				return
			}
			back = u.comeback()
			lived := time.Since(began)
			if lived >= briefLife {
				failures.reset()
			}
			if lived > steadyAfter {
				relapses.reset()
			}
			if err = a.Err(); err == nil { // suspect
				wait = relapses.next()
			}
		}
		if err != nil {
			wait = failures.next()
		}
		if err != nil && ctx.Err() == nil {
			why := explainQUIC(err, u.link, kind == carrier.KindQUIC && u.session.SmallSegments())
			u.status.failed(kind, why.sentence, why.final)
			if why.final {
				wait, back = refusedBackoff, nil
				refused()
			}
		}
		pause(ctx, wait, back)
	}
}

// pause blocks for wait, or until the server is back: the reason for the failure may be gone.
func pause(ctx context.Context, wait time.Duration, back <-chan struct{}) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-back:
	}
}

// comeback returns a channel that is closed when the server is back.
func (u *upstream) comeback() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.back
}

// cameBack wakes the goroutines in pause after a carrier was attached, unless another one was
// shortly before: carriers that end at once must not make each other dial without pause.
func (u *upstream) cameBack() {
	u.mu.Lock()
	defer u.mu.Unlock()
	before := u.last
	if u.last = time.Now(); u.last.Sub(before) < steadyAfter {
		return
	}
	close(u.back)
	u.back = make(chan struct{})
}

// awaitNeed blocks until another carrier of the kind is needed. It returns false if ctx ends.
func (u *upstream) awaitNeed(ctx context.Context, kind carrier.Kind) bool {
	for ctx.Err() == nil {
		changed := u.session.Changes()
		if u.session.Needs(kind) {
			return true
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
	return false
}

// awaitEnd blocks until a has ended or another carrier of its kind is needed. It returns false
// if ctx ends.
func (u *upstream) awaitEnd(ctx context.Context, a *tunnel.Path, kind carrier.Kind) bool {
	for {
		changed := u.session.Changes()
		if u.session.Needs(kind) {
			return ctx.Err() == nil
		}
		select {
		case <-a.Done():
			return ctx.Err() == nil
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}

// attachOnce dials and attaches one carrier.
func (u *upstream) attachOnce(ctx context.Context, kind carrier.Kind) (*tunnel.Path, error) {
	p, err := u.connect(ctx, kind)
	if err != nil {
		return nil, err
	}
	a, err := u.session.Attach(ctx, p, tunnel.Credentials{User: u.link.Name, Token: u.link.Secret})
	if err != nil {
		return nil, err
	}
	u.status.attached(kind)
	u.cameBack()
	return a, nil
}

// usable reports whether new flows and streams may use this server.
func (u *upstream) usable() bool { return u.session.Healthy(0) && !u.session.Leaving() }

// rtt returns the lowest round-trip time of the good carriers, 0 if unknown.
func (u *upstream) rtt() (least time.Duration) {
	for _, a := range u.session.Paths() {
		if rtt := a.RTT(); rtt > 0 && (least == 0 || rtt < least) {
			least = rtt
		}
	}
	return least
}
