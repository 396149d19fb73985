package tunnel

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"wmproxy/internal/user"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/health"
	"wmproxy/tunnel/wire"
)

// RegistryConfig is how a server treats those who come in.
type RegistryConfig struct {
	// Authenticate returns the user of these credentials, nil if they are wrong. It takes
	// as long either way.
	Authenticate func(Credentials) *user.User

	// Exit returns what serves a user's flows and streams.
	Exit func(u *user.User) Exit

	// Hold is how long a session without a carrier is kept; 0 ends it at once. A
	// client that said that it goes is not waited for.
	Hold time.Duration

	// Admit, if set, is asked about each connection whose client has authenticated,
	// before Welcome. An error refuses it; a *CloseError is sent to the client. left is called
	// when the connection is closed. Admit may wait until ctx ends.
	Admit func(ctx context.Context, c *Connection) (left func(), err error)

	// MaxStreams bounds the streams that one session's client may have open; 0 is
	// MaxStreams of the package.
	MaxStreams int

	// Timers say when a carrier is dead; a server uses no other of them.
	Timers health.Timers

	// Event, if set, gets a sentence for each change of the user's session that an
	// operator may want to know of. It must not wait or call the session.
	Event func(user, sentence string)

	Log *slog.Logger
}

// Registry is a server's sessions.
type Registry struct {
	cfg      RegistryConfig
	instance [16]byte // names this process to clients
	ending   sync.WaitGroup

	mu       sync.Mutex
	most     int // sessions
	sessions map[sessionKey]*Session
	draining time.Time // when we shall be gone; zero is not known
	closed   bool

	servingMu sync.RWMutex // after mu
	serving   map[*user.User]*Session
}

type sessionKey struct {
	user *user.User
	id   SessionID
}

// NewRegistry returns a registry without sessions.
func NewRegistry(cfg RegistryConfig) *Registry {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r := &Registry{cfg: cfg, most: maxSessions, sessions: make(map[sessionKey]*Session), serving: make(map[*user.User]*Session)}
	rand.Read(r.instance[:])
	return r
}

// Attach authenticates the client behind p and attaches it to its session, which
// it makes if need be. The registry keeps p, which it closes on failure, having told
// the client why. A refusal is a *CloseError. ctx bounds the handshake alone.
func (r *Registry) Attach(ctx context.Context, p carrier.Pending) (*Path, error) {
	ctx, cancel := context.WithTimeout(ctx, carrier.HandshakeTimeout)
	defer cancel()
	hh, err := r.readHello(ctx, p)
	if err != nil {
		refuse(p, hh.rw, err)
		return nil, err
	}
	s, resumed, err := r.join(hh, p.Traits().Kind)
	if s == nil && err == nil {
		s, resumed, err = r.rejoin(hh, p.Traits().Kind)
	}
	if err != nil {
		refuse(p, hh.rw, err)
		return nil, err
	}
	defer s.release()
	conn := newConnection(s, p.Traits())
	left, err := r.admit(ctx, conn)
	if err != nil {
		s.leaveUnused()
		refuse(p, hh.rw, err)
		return nil, err
	}
	a, err := r.welcome(ctx, hh, p, s, resumed)
	if err != nil {
		left()
		return nil, err
	}
	ended := func() {
		conn.await(a)
		left()
	}
	if !s.spawn(ended) {
		ended() // soon: the session closes its carriers
	}
	return a, nil
}

func (r *Registry) admit(ctx context.Context, c *Connection) (left func(), err error) {
	if r.cfg.Admit == nil {
		return func() {}, nil
	}
	return r.cfg.Admit(ctx, c)
}

// welcome answers the Hello and attaches the connection.
func (r *Registry) welcome(ctx context.Context, hh *clientHello, p carrier.Pending, s *Session, resumed bool) (*Path, error) {
	w := wire.Welcome{
		Version: min(hh.MaxVersion, wire.MaxVersion), Instance: r.instance, Resumed: resumed,
		MaxFlows: MaxFlows, MaxStreams: uint64(s.maxStreams), Hold: r.cfg.Hold, Features: wire.OwnFeatures,
	}
	if _, err := hh.rw.Write(wire.AppendMessage(nil, wire.MsgWelcome, w.Append(nil))); err != nil {
		p.Close(carrier.CodeProtocol, "")
		return nil, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	c, err := p.Start(ctx)
	if err != nil {
		p.Close(carrier.CodeProtocol, "the handshake failed")
		return nil, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	path, err := s.attach(c, s.inc, handshakeResult{number: hh.Attach, instance: r.instance, resumed: resumed, features: hh.Features})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changedLocked(s.cfg.User)
	return path, err
}

// rejoin asks a client whose session we do not know for a new one.
func (r *Registry) rejoin(hh *clientHello, kind carrier.Kind) (*Session, bool, error) {
	if _, err := hh.rw.Write(wire.AppendMessage(nil, wire.MsgRenew, nil)); err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	if err := r.nextHello(hh); err != nil {
		return nil, false, err
	}
	s, resumed, err := r.join(hh, kind)
	if s == nil && err == nil {
		err = &carrier.CloseError{Code: carrier.CodeSession, Reason: "no such session"}
	}
	return s, resumed, err
}

// create makes a session; r.mu is held.
func (r *Registry) create(key sessionKey, secret []byte) (*Session, error) {
	if !r.draining.IsZero() {
		return nil, &carrier.CloseError{Code: carrier.CodeDraining, Reason: "the server is about to stop and takes no new clients"}
	}
	users := ofUser(key.user)
	if r.countLocked(users) >= maxUserSessions && !r.makeWayLocked(users, "there are too many sessions") {
		return nil, &carrier.CloseError{Code: carrier.CodeLimit, Reason: "this user has too many sessions"}
	}
	if len(r.sessions) >= r.most && !r.takePlaceLocked(key.user) {
		return nil, &carrier.CloseError{Code: carrier.CodeLimit, Reason: "the server has too many sessions"}
	}
	in := &incarnation{id: key.id, confirmed: true}
	copy(in.secret[:], secret)
	cfg := SessionConfig{User: key.user, Log: r.cfg.Log.With(slog.String("user", key.user.Name)), Timers: r.cfg.Timers}
	if r.cfg.Event != nil {
		cfg.Event = func(sentence string) { r.cfg.Event(key.user.Name, sentence) }
	}
	if r.cfg.Exit != nil {
		cfg.Exit = r.cfg.Exit(key.user)
	}
	s := newSession(cfg, true, in)
	if r.cfg.MaxStreams > 0 {
		s.maxStreams = int64(r.cfg.MaxStreams)
	}
	s.orphaned = func() { r.orphaned(key, s) }
	r.sessions[key] = s
	return s, nil
}

// orphaned ends a session that nothing is attached to, at once or after Hold.
func (r *Registry) orphaned(key sessionKey, s *Session) {
	if r.cfg.Hold == 0 || s.left() {
		r.end(key, s)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || !r.startHold(key, s) {
		return // or attached again
	}
	r.changedLocked(key.user)
	users := ofUser(key.user)
	held := r.countLocked(func(k sessionKey, s *Session) bool {
		if !users(k, s) {
			return false
		}
		_, held := s.heldSince()
		return held
	})
	if held > maxHeld {
		r.makeWayLocked(users, "the user has too many sessions without a connection")
	}
}

// ofUser is the sessions of one user.
func ofUser(u *user.User) func(sessionKey, *Session) bool {
	return func(k sessionKey, _ *Session) bool { return k.user == u }
}

// startHold makes the session end after Hold, unless it is in use.
func (r *Registry) startHold(key sessionKey, s *Session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.orphanedLocked() == nil {
		return false
	}
	if s.holding != nil {
		s.holding.Stop()
	}
	s.holding = time.AfterFunc(r.cfg.Hold, func() { r.end(key, s) })
	return true
}

// MakeRoom ends the session among those that nothing is attached to that has been so
// for longest and has flows: one of the user, or if there is none, one of another for
// whom may is true; nil is nobody. It reports whether there was one; its flows have
// ended by then. An exit without room calls it. It does not wait.
func (r *Registry) MakeRoom(user string, may func(other string) bool) bool {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return false
	}
	key, s := r.longestHeldLocked(func(k sessionKey, s *Session) bool { return k.user.Name == user && s.Flows() > 0 })
	if s == nil && may != nil {
		key, s = r.longestHeldLocked(func(k sessionKey, s *Session) bool { return s.Flows() > 0 && may(k.user.Name) })
	}
	if s == nil {
		r.mu.Unlock()
		return false
	}
	r.ending.Add(1)
	defer r.ending.Done()
	r.removeLocked(key)
	r.mu.Unlock()
	s.endFlows() // in time for the caller
	r.mu.Lock()
	r.dropLocked(key, s, "others need the room")
	r.mu.Unlock()
	return true
}

// longestHeldLocked returns the session that has had no carrier for longest, among
// those that may go; nil is none. r.mu is held.
func (r *Registry) longestHeldLocked(may func(sessionKey, *Session) bool) (key sessionKey, longest *Session) {
	var since time.Time
	for k, s := range r.sessions {
		if !may(k, s) {
			continue
		}
		detached, held := s.heldSince()
		if held && (longest == nil || detached.Before(since)) {
			longest, key, since = s, k, detached
		}
	}
	return key, longest
}

// makeWayLocked ends that session, and says whether there was one. r.mu is held.
func (r *Registry) makeWayLocked(may func(sessionKey, *Session) bool, reason string) bool {
	key, s := r.longestHeldLocked(may)
	if s != nil {
		r.dropLocked(key, s, reason)
	}
	return s != nil
}

// takePlaceLocked ends a session to make room for user: a held one, of user or of a user with more
// sessions, else the least used one of the user with most, if that user then still has as many as
// user. It reports whether it ended one. r.mu is held.
func (r *Registry) takePlaceLocked(u *user.User) bool {
	has := make(map[*user.User]int)
	for k := range r.sessions {
		has[k.user]++
	}
	mayGo := func(k sessionKey, _ *Session) bool { return k.user == u || has[k.user] > has[u] }
	if r.makeWayLocked(mayGo, "there are too many sessions") {
		return true
	}
	var greedy *user.User
	for other, n := range has {
		if n > has[greedy] {
			greedy = other
		}
	}
	if has[greedy] < has[u]+2 {
		return false
	}
	var least *Session
	var key sessionKey
	var last time.Time
	for k, s := range r.sessions {
		if used := s.lastUsed(); k.user == greedy && (least == nil || used.Before(last)) {
			least, key, last = s, k, used
		}
	}
	r.dropLocked(key, least, "others need the place, and of this user's many sessions it was the least used")
	return true
}

// countLocked counts the sessions that are meant. r.mu is held.
func (r *Registry) countLocked(meant func(sessionKey, *Session) bool) (n int) {
	for k, s := range r.sessions {
		if meant(k, s) {
			n++
		}
	}
	return n
}

// dropLocked ends a session before its time. r.mu is held.
func (r *Registry) dropLocked(key sessionKey, s *Session, reason string) {
	what := "a session that was held is ended"
	if _, held := s.heldSince(); !held {
		what = "a session is ended"
	}
	r.cfg.Log.Info(what, slog.String("user", key.user.Name), slog.String("reason", reason))
	r.removeLocked(key)
	r.ending.Go(func() { s.Close(carrier.CodeLimit, reason) })
}

// Drain tells every client that the server will be gone after left, and lets no
// new session in. What is there goes on.
func (r *Registry) Drain(left time.Duration) {
	r.mu.Lock()
	r.draining = time.Now().Add(left)
	r.mu.Unlock()
	for _, s := range r.Sessions() {
		s.tellDrain(left)
	}
}

// Idle says whether no session has a flow or a stream.
func (r *Registry) Idle() bool {
	for _, s := range r.Sessions() {
		if s.Flows() > 0 || s.streams.Load() > 0 {
			return false
		}
	}
	return true
}

func (r *Registry) end(key sessionKey, s *Session) {
	r.mu.Lock()
	if r.sessions[key] != s {
		r.mu.Unlock()
		return
	}
	// A hold taken since is let go with an error: see Session.hold.
	s.mu.Lock()
	held := s.orphanedLocked() == nil
	s.mu.Unlock()
	if held || r.closed {
		r.mu.Unlock()
		return
	}
	r.removeLocked(key)
	// Not here: the caller may be one of the goroutines that Close waits for.
	r.ending.Go(func() { s.Close(carrier.CodeSession, "the session has ended") })
	r.mu.Unlock()
}

// EndSessions ends the sessions of the users that of reports true for, telling
// their clients why, and returns how many there were. A handshake that was under
// way when Authenticate changed its mind is refused.
func (r *Registry) EndSessions(of func(u *user.User) bool, code carrier.ErrorCode, reason string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0
	}
	for key, s := range r.sessions {
		if !of(key.user) {
			continue
		}
		n++
		r.removeLocked(key)
		r.ending.Go(func() { s.Close(code, reason) })
	}
	return n
}

// For returns the session for what this side opens towards the user's client: one with a
// carrier if there is one, and of several the one that had been used last when a session of the
// user was last attached, held or ended; nil if there is none.
func (r *Registry) For(u *user.User) *Session {
	r.servingMu.RLock()
	defer r.servingMu.RUnlock()
	return r.serving[u]
}

// changedLocked is called when a session of the user was attached or held, or has ended.
// r.mu is held.
func (r *Registry) changedLocked(u *user.User) {
	var best *Session
	var bestHeld bool
	var bestUsed time.Time
	for key, s := range r.sessions {
		if key.user != u {
			continue
		}
		_, held := s.heldSince()
		used := s.lastUsed()
		if best == nil || bestHeld && !held || bestHeld == held && used.After(bestUsed) {
			best, bestHeld, bestUsed = s, held, used
		}
	}
	r.servingMu.Lock()
	defer r.servingMu.Unlock()
	if best == nil {
		delete(r.serving, u)
	} else {
		r.serving[u] = best
	}
}

// removeLocked takes a session off the table. r.mu is held.
func (r *Registry) removeLocked(key sessionKey) {
	delete(r.sessions, key)
	r.changedLocked(key.user)
}

// Sessions lists the sessions.
func (r *Registry) Sessions() []*Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*Session, 0, len(r.sessions))
	for _, s := range r.sessions {
		out = append(out, s)
	}
	return out
}

// Close ends every session and waits for their goroutines.
func (r *Registry) Close(code carrier.ErrorCode, reason string) {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range slices.Clone(r.Sessions()) {
		wg.Go(func() { s.Close(code, reason) })
	}
	wg.Wait()
	r.ending.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.sessions)
	r.servingMu.Lock()
	defer r.servingMu.Unlock()
	clear(r.serving)
}
