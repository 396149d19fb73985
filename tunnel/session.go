// Package tunnel is sessions over carriers: the authenticated relationship of
// one client with one server, whose datagrams and streams travel over whatever
// connections are attached to it at the time. It does not parse SOCKS: the body of a record and the
// address of a stream are bytes to it. Of SOCKS it borrows the reply codes.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/notify"
	"wmproxy/internal/stats"
	"wmproxy/internal/user"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/health"
	"wmproxy/tunnel/queue"
	"wmproxy/tunnel/wire"
)

// Errors of a session.
var (
	ErrSessionClosed = errors.New("tunnel: the session has ended")
	ErrNotAttached   = errors.New("tunnel: nothing is attached to the session")
	errRenewed       = fmt.Errorf("%w: the session was renewed meanwhile; try again", ErrHandshake)
)

// SessionConfig is how a session behaves. The zero value works: it opens flows
// and streams, and refuses those of the peer.
type SessionConfig struct {
	// User is whose session it is; what it drops counts in the user's total. nil is a nameless one.
	User *user.User

	// Exit serves what the peer opens; nil refuses it.
	Exit Exit

	// Transports are those that carriers may come by, for a client to choose among; nil
	// is those that carriers have come by.
	Transports []carrier.Traits

	// Streams is the kind of carrier that new streams prefer; 0 is by rank, but for
	// a transport that delivers in order while it has to send much again.
	Streams carrier.Kind

	// Timers say how soon a carrier is doubted.
	Timers health.Timers

	// Numbers is where flow numbers come from, for a client with several sessions;
	// nil is the session's own.
	Numbers *FlowNumbers

	// Changed, if set, is called after a carrier was attached or detached, or the
	// verdict on one has changed. It must not wait.
	Changed func()

	// Event, if set, gets a sentence for each change that an operator may want to
	// know of. It must not wait.
	Event func(string)

	// Log is for what an operator should know; nil discards.
	Log *slog.Logger

	// unpadded is for the test that shows what padding costs.
	unpadded bool
}

// Session is the authenticated relationship of one client with one server. Its
// flows and streams travel over whatever carriers are attached to it.
type Session struct {
	cfg    SessionConfig
	server bool
	start  time.Time
	wall   func() time.Time // the clock that an operator may set; not steady
	q      queue.Queue
	drops  stats.Drops
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	wg     sync.WaitGroup // carriers and streams; see spawn

	flowsMu sync.RWMutex
	flows   map[uint64]*Flow
	ended   endedSet     // of the peer's flows
	peerOf  *incarnation // that the peer's flows belong to
	numbers *FlowNumbers

	unknownAt atomic.Int64 // when we last answered an unknown flow

	peer atomic.Uint64 // Features of the peer, from the newest path

	mu            sync.Mutex
	inc           *incarnation
	paths         []*Path       // oldest first
	attaches      uint64        // attach numbers given out, rising
	changed       chan struct{} // closed and replaced when attached changes
	prefer        preference
	datagramPath  *Path // the carrier that serves datagrams; nil is none
	streamPath    *Path // the same for streams, and for ends
	ends          endList
	closed        bool
	pendingEvents []pendingEvent // see event
	holds         int            // attaches under way (server)
	orphaned      func()         // called without locks when the last carrier and hold are gone
	detached      time.Time
	gone          bool          // the client said that it will not come back
	draining      time.Duration // on the server, what it told: 0 is not
	leaving       bool          // on the client: the server drains
	instance      [16]byte      // of the server process attached last
	holding       *time.Timer   // ends a session that nothing is attached to

	streams    atomic.Int64 // that the peer opened
	crowded    atomic.Bool  // the user holds too much memory for another
	maxStreams int64        // that the peer may have open

	mostStreams int64 // that the peer lets us have open
	widening    int   // streams that wait for another carrier, because all are full
}

// preference is which carrier serves which class, by attach number.
type preference struct {
	epoch, datagrams, streams uint64
}

// NewSession returns a client's session, to which nothing is attached yet.
func NewSession(cfg SessionConfig) *Session {
	return newSession(cfg, false, newIncarnation())
}

func newSession(cfg SessionConfig, server bool, in *incarnation) *Session {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.User == nil {
		cfg.User = user.New("", "", new(stats.Total))
	}
	cfg.Timers = cfg.Timers.WithDefaults()
	s := &Session{
		cfg: cfg, server: server, inc: in, peerOf: in, start: time.Now(),
		flows: make(map[uint64]*Flow), changed: make(chan struct{}),
		maxStreams: MaxStreams, mostStreams: MaxStreams,
		wall: func() time.Time { return time.Now().Round(0) },
	}
	s.drops.In(&cfg.User.Total.Drops)
	s.numbers = cfg.Numbers
	if s.numbers == nil {
		s.numbers = new(FlowNumbers)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// now is the session's steady clock.
func (s *Session) now() time.Duration { return time.Since(s.start) }

// Dropped returns how many datagrams were dropped, by reason.
func (s *Session) Dropped() stats.Dropped { return s.drops.Dropped() }

// User returns whose session it is.
func (s *Session) User() *user.User { return s.cfg.User }

// PeerFeatures returns the features that the peer announced when it last attached.
func (s *Session) PeerFeatures() wire.Features { return wire.Features(s.peer.Load()) }

// openStreams returns how many streams are open, whichever side opened them.
func (s *Session) openStreams() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.paths {
		n += int(p.streams.Load())
	}
	return n
}

// Flows is how many flows are open.
func (s *Session) Flows() int {
	s.flowsMu.RLock()
	defer s.flowsMu.RUnlock()
	return len(s.flows)
}

// Paths lists the carriers, oldest first.
func (s *Session) Paths() []*Path {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.paths)
}

func (s *Session) current() *incarnation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inc
}

func (s *Session) isConfirmed(in *incarnation) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return in.confirmed
}

// renew replaces old, which the server does not know (any more), and drops the
// carriers that belong to it. Two carriers that find out at once renew once.
func (s *Session) renew(old *incarnation) {
	s.mu.Lock()
	if s.inc != old {
		s.mu.Unlock()
		return
	}
	s.inc = newIncarnation()
	s.ends.reset() // the new server process knows none of our flows
	stale := slices.Clone(s.paths)
	theirs := s.takePeerFlows(s.inc)
	s.mu.Unlock()
	endAll(theirs) // first: a carrier may take a while to close, and the new ones carry other flows of these numbers
	for _, p := range stale {
		p.closeFor(carrier.CodeReplaced, "the session was renewed")
	}
}

// Attach authenticates on p and attaches it. The session keeps p, which it closes
// on failure. A refusal is a *CloseError; other failures wrap ErrHandshake or are
// ErrSessionClosed. ctx bounds the handshake alone.
func (s *Session) Attach(ctx context.Context, p carrier.Pending, cred Credentials) (*Path, error) {
	ctx, cancel := context.WithTimeout(ctx, carrier.HandshakeTimeout)
	defer cancel()
	s.mu.Lock()
	s.attaches++
	number, closed := s.attaches, s.closed
	s.mu.Unlock()
	if closed {
		p.Close(carrier.CodeShutdown, "the session has ended")
		return nil, ErrSessionClosed
	}
	w, in, err := s.handshakeClient(ctx, p, cred, number)
	if err != nil {
		p.Close(carrier.CodeProtocol, "")
		return nil, err
	}
	c, err := p.Start(ctx)
	if err != nil {
		p.Close(carrier.CodeProtocol, "")
		return nil, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	return s.attach(c, in, handshakeResult{number: number, instance: w.Instance, resumed: w.Resumed, features: w.Features})
}

// handshakeResult is the outcome of a handshake.
type handshakeResult struct {
	number   uint64        // the attach number
	instance [16]byte      // of the server process
	resumed  bool          // the server knew the session already
	features wire.Features // that the peer announced
}

// attach adds c to the session and serves it until it ends.
func (s *Session) attach(c carrier.Carrier, in *incarnation, info handshakeResult) (*Path, error) {
	p := &Path{
		s: s, c: c, traits: c.Traits(), in: in, handshakeResult: info, began: s.now(),
		snd: queue.NewSender(c.Traits().Exact), done: make(chan struct{}),
	}
	p.snd.Pads = p.snd.Pads && !s.cfg.unpadded
	p.out.wake = notify.New()
	p.beat.wake = notify.New()
	if !s.server {
		p.beat.h = health.New(s.cfg.Timers, p.began)
	}
	p.heard.Store(int64(p.began))
	s.mu.Lock()
	if s.closed || s.inc != in {
		closed := s.closed
		s.mu.Unlock()
		if closed {
			c.Close(carrier.CodeShutdown, "the session has ended") // a server then holds nothing for us
			return nil, ErrSessionClosed
		}
		c.Close(carrier.CodeSession, "the session was renewed")
		return nil, errRenewed
	}
	in.confirmed = true
	if s.instance != info.instance {
		s.instance, s.leaving = info.instance, false
	}
	s.peer.Store(uint64(info.features))
	if !s.server {
		for _, b := range slices.Backward(s.paths) {
			if b.Kind() == p.Kind() && b.c.Err() == nil {
				p.inherit(b)
				break
			}
		}
	}
	surplus := s.surplusLocked(p.Kind())
	if s.holding != nil {
		s.holding.Stop()
	}
	s.paths = append(s.paths, p)
	p.out.heard = s.prefer.epoch
	if s.draining > 0 {
		p.out.sendDrain(s.draining)
	}
	if p.traits.SmallSegments {
		s.event(slog.LevelInfo, "%s attached to %v in small segments: nothing came back with larger ones", p.Kind(), c.RemoteAddr())
	} else {
		s.event(slog.LevelDebug, "%s attached to %v", p.Kind(), c.RemoteAddr())
	}
	s.chooseLocked()
	s.wg.Go(p.execute)
	s.mu.Unlock()
	for _, b := range surplus {
		b.closeFor(carrier.CodeReplaced, "newer connections of the same kind took its place")
	}
	s.retire()
	s.notify()
	return p, nil
}

func (s *Session) detach(p *Path) {
	s.mu.Lock()
	s.paths = slices.DeleteFunc(s.paths, func(b *Path) bool { return p == b })
	if s.ends.on == p {
		s.ends.on = nil // with all that its streams hold
	}
	s.event(slog.LevelDebug, "%s ended: %v", p.Kind(), p.Err())
	s.chooseLocked()
	s.detached = time.Now()
	if e, ok := errors.AsType[*carrier.CloseError](p.Err()); ok && s.server && e.Code == carrier.CodeShutdown {
		s.gone = true
	}
	orphaned := s.orphanedLocked()
	s.mu.Unlock()
	s.notify()
	if orphaned != nil {
		orphaned()
	}
}

// notify tells of what has happened. It is called without s.mu after each change.
func (s *Session) notify() {
	s.mu.Lock()
	said := s.pendingEvents
	s.pendingEvents = nil
	s.mu.Unlock()
	for _, e := range said {
		s.cfg.Log.Log(context.Background(), e.level, e.sentence)
		if s.cfg.Event != nil {
			s.cfg.Event(e.sentence)
		}
	}
	if s.cfg.Changed != nil {
		s.cfg.Changed()
	}
}

// preferred takes the client's choice; an older one than we have heard is stale.
func (s *Session) preferred(p preference) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.server || p.epoch <= s.prefer.epoch {
		return
	}
	s.prefer = p
	s.chooseLocked()
	for _, a := range s.paths {
		a.out.hear(p.epoch)
	}
}

// streamCarrier returns the carrier for a new stream, waiting a bounded time while nothing is
// attached, or while the client attaches another because all are full.
func (s *Session) streamCarrier(ctx context.Context, r *streamRequest) (*Path, error) {
	ctx, cancel := context.WithTimeout(ctx, r.life+attachWait-s.now())
	defer cancel()
	for {
		s.mu.Lock()
		p, full, open := s.roomLocked(r.full), len(r.full) > 0, s.openLocked()
		if open >= s.mostStreams {
			p, full = nil, true
		}
		widening := p == nil && full && r.refused == nil && open < s.mostStreams && s.widenLocked()
		changed, closed := s.changed, s.closed
		s.mu.Unlock()
		switch {
		case closed:
			return nil, ErrSessionClosed
		case p != nil:
			return p, nil
		case full && r.refused != nil:
			return nil, fmt.Errorf("%w: the server takes no more from this user now: %w", carrier.ErrStreamLimit, r.refused)
		case full && !widening:
			return nil, fmt.Errorf("%w: %d are open", carrier.ErrStreamLimit, open)
		}
		var err error
		select {
		case <-changed:
			r.full = nil // there may be room again
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if widening {
			s.widened()
		}
		switch {
		case err == nil:
		case !errors.Is(err, context.DeadlineExceeded):
			return nil, err
		case full:
			return nil, fmt.Errorf("%w: %d are open and no other connection could be made", carrier.ErrStreamLimit, open)
		default:
			return nil, ErrNotAttached
		}
	}
}

// hold keeps a server's session while a carrier attaches to it.
func (s *Session) hold() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return &carrier.CloseError{Code: carrier.CodeSession, Reason: "the session has just ended; try again"}
	}
	s.holds++
	return nil
}

func (s *Session) release() {
	s.mu.Lock()
	s.holds--
	orphaned := s.orphanedLocked()
	s.mu.Unlock()
	if orphaned != nil {
		orphaned()
	}
}

func (s *Session) orphanedLocked() func() {
	if len(s.paths) > 0 || s.holds > 0 || s.closed {
		return nil
	}
	return s.orphaned
}

// heldSince says since when the server's session has had no carrier; held is
// false where one is attached or about to be.
func (s *Session) heldSince() (since time.Time, held bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.detached, s.orphanedLocked() != nil
}

// tellDrain tells the client that the server will be gone after left.
func (s *Session) tellDrain(left time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = max(left, time.Millisecond)
	for _, p := range s.paths {
		p.out.sendDrain(s.draining)
	}
}

// drain notes that the server will soon be gone.
func (s *Session) drain(left time.Duration) {
	s.mu.Lock()
	first := !s.leaving
	s.leaving = true
	if first { // it comes on every carrier
		s.event(slog.LevelDebug, "the server goes in %v", left.Round(time.Second))
	}
	s.mu.Unlock()
	if first {
		s.notify()
	}
}

// Leaving says whether the server has told that it will soon be gone.
func (s *Session) Leaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaving
}

// leave notes that the client goes for good: nothing is held for it.
func (s *Session) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
}

// leaveUnused is leave for a session that has never had a carrier, unless another is about to
// attach.
func (s *Session) leaveUnused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds == 1 && len(s.paths) == 0 && s.detached.IsZero() {
		s.gone = true
	}
}

func (s *Session) left() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}

// spawn calls f in a goroutine that Close waits for, and reports whether it did: not once
// the session has ended.
func (s *Session) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(f)
	return true
}

// Close ends the session: it tells the peer, closes the carriers, ends the flows
// and waits for all goroutines. Further calls wait as well.
func (s *Session) Close(code carrier.ErrorCode, reason string) {
	s.mu.Lock()
	attached := slices.Clone(s.paths)
	first := !s.closed
	s.closed = true
	if s.holding != nil {
		s.holding.Stop()
	}
	if first {
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if first {
		var told sync.WaitGroup
		for _, p := range attached {
			told.Go(func() {
				p.goAway(&carrier.CloseError{Code: code, Reason: reason})
				p.closeFor(code, reason)
			})
		}
		s.cancel()
		told.Wait()
		s.q.Close()
		s.endFlows()
		s.wg.Done()
	}
	s.wg.Wait()
}

func (s *Session) endFlows() {
	s.flowsMu.Lock()
	flows := s.flows
	s.flows = make(map[uint64]*Flow)
	s.flowsMu.Unlock()
	endAll(flows)
}

func endAll(flows map[uint64]*Flow) {
	for _, f := range flows {
		if f.over.CompareAndSwap(false, true) {
			f.ended(EndShutdown)
		}
	}
}
