// Package egress has the exits of the tunnel: a flow gets a real UDP socket, a stream a TCP
// connection, and every address that they use is checked by the destination policy. It must
// not know the source of a request.
package egress

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/config"
	"wmproxy/internal/share"
	"wmproxy/internal/user"
	"wmproxy/tunnel"
)

// Defaults of Config.
const (
	defaultDialTimeout    = 10 * time.Second
	defaultMaxUserFlows   = 16384
	defaultMaxUserStreams = 8192
)

const (
	sweepsPerIdle = 10               // so that an idle flow ends about a tenth too late at most
	maxSweep      = 30 * time.Second // longest time between sweeps
	hostRefresh   = 30 * time.Second // between readings of the host's own addresses

	// Datagrams from its remotes keep a flow open for heardFor after its own last one, for a call on
	// hold or a subscription. This holds for maxHeardFlows of a user, because anybody on the Internet
	// may send to them.
	heardFor      = time.Hour
	maxHeardFlows = 64

	// noRoomFor is the time without a call of MakeRoom for a user for whom it could free
	// nothing: a flood of flows beyond the limit must cost little.
	noRoomFor = 100 * time.Millisecond
)

var errLimit = errors.New("the limit is reached")

// Config is the configuration of exits. The zero value of a field but Exit is the default.
type Config struct {
	// Exit is the user's options. A flow keeps its socket for UDPIdle without a datagram from
	// the client or, within heardFor of that one, from a remote.
	config.Exit

	// Advertised is the address or the name by which clients reach this host. Behind a NAT no
	// interface has that address, but packets to it come back here: it counts as the host's own.
	// Empty means none.
	Advertised string

	// Closed reports whether this process itself listens on ap's port, which is then closed
	// even if Allow contains it. It is called only for addresses at which this host answers,
	// on the data path, from many goroutines.
	Closed func(ap netip.AddrPort) bool

	DialTimeout time.Duration // for a stream's name and all its dials together; 0 means defaultDialTimeout

	// Bounds of one user at a time; 0 means the default.
	MaxUserFlows, MaxUserStreams int

	// Room is the descriptors that users share, one for each flow and stream. If it is nil
	// these exits have a pool of their own.
	Room *share.Pool

	// Counted is set if Room has counted the flows and streams already, for the
	// applications of this process. A stream's additional attempts to connect count here.
	Counted bool

	// MakeRoom, if set, is called when a user has MaxUserFlows. It ends unused flows of this
	// user and reports whether there were any. It must not block.
	MakeRoom func(user string) bool

	NoOffload bool // no segmentation offload on the sockets

	// Resolve resolves a name; nil means the system's resolver. Its results are cached. It is
	// called by few goroutines at once, and for the same name again only after the context of
	// the call before has ended.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)

	Log *slog.Logger // nil logs nothing
}

func (c Config) withDefaults() Config {
	c.DialTimeout = defaulted(c.DialTimeout, defaultDialTimeout)
	c.MaxUserFlows = defaulted(c.MaxUserFlows, defaultMaxUserFlows)
	c.MaxUserStreams = defaulted(c.MaxUserStreams, defaultMaxUserStreams)
	if c.Room == nil {
		c.Room = share.For(0)
	}
	if c.Resolve == nil {
		c.Resolve = systemLookup
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func defaulted[T int | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// Exits is all exits of a process. They share limits, policy and resolver.
type Exits struct {
	cfg      Config
	policy   *policy
	own      *ownAddrs
	resolver *resolver
	now      func() time.Time // for the silence of addresses; replaced in tests

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	// wg counts the sweeper, every open flow, every stream being served and closeEnded.
	wg sync.WaitGroup

	tick       atomic.Uint32 // sweeps so far: the clock of flows
	idleTicks  uint32        // a flow unused for more than this is idle
	heardTicks uint32        // heardFor
	every      time.Duration // between two sweeps
	held       atomic.Int64  // bytes of all datagrams that are waiting for a name

	mu      sync.Mutex
	closed  bool
	users   map[*user.User]*UserExit
	flows   map[*flow]struct{} // open
	closing int                // of all users
	ended   []ending           // not taken by closeEnded yet
}

// New returns exits that work until Close.
func New(cfg Config) *Exits {
	cfg = cfg.withDefaults()
	e := &Exits{
		cfg:      cfg,
		policy:   newPolicy(cfg.Allow, cfg.Deny, cfg.Closed),
		resolver: newResolver(cfg.Resolve, hasRoute),
		now:      time.Now,
		users:    make(map[*user.User]*UserExit),
		flows:    make(map[*flow]struct{}),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	every := max(min(cfg.UDPIdle/sweepsPerIdle, maxSweep), time.Millisecond)
	e.every = every
	e.idleTicks = uint32((cfg.UDPIdle + every - 1) / every)
	e.heardTicks = uint32((heardFor + every - 1) / every)
	e.own = newOwnAddrs(e.policy, cfg.Log)
	e.wg.Go(func() { e.own.follow(e.ctx) })
	if ip, err := netip.ParseAddr(cfg.Advertised); err == nil {
		e.own.setAdvertised([]netip.Addr{ip})
	} else if cfg.Advertised != "" {
		e.wg.Go(func() { e.own.followAdvertised(e.ctx, cfg.Advertised, cfg.Resolve) })
	}
	e.wg.Go(func() { e.sweepUntilClosed(every) })
	return e
}

// For returns the exit of a user. It returns the same one each time, so that limits hold
// over all sessions of the user.
func (e *Exits) For(of *user.User) *UserExit {
	e.mu.Lock()
	defer e.mu.Unlock()
	u := e.users[of]
	if u == nil {
		// A user who was removed and added again is another; tokens may be rotated for years.
		maps.DeleteFunc(e.users, func(old *user.User, exit *UserExit) bool {
			return old.Name == of.Name && exit.flows+exit.streams+exit.closing == 0
		})
		u = &UserExit{User: of, exits: e}
		e.users[of] = u
	}
	return u
}

// UserExit is the exit of one user. It is a tunnel.Exit.
type UserExit struct {
	*user.User
	exits *Exits

	flows, streams int       // under exits.mu
	closing        int       // flows with a socket about to be closed; under exits.mu
	noRoom         time.Time // the last time that MakeRoom freed nothing; under exits.mu
	lookups        asker     // names waiting for the resolver; under its lock
}

var _ tunnel.Exit = (*UserExit)(nil)

// Close ends all flows and streams, notifies the peers, and returns once every socket is
// closed. It makes OpenFlow and ServeStream refuse everything.
func (e *Exits) Close() {
	e.mu.Lock()
	e.closed = true
	open := slices.Collect(maps.Keys(e.flows))
	e.mu.Unlock()
	e.cancel() // streams reset, the sweeper ends
	for _, f := range open {
		f.link.End(tunnel.EndShutdown)
		f.close(tunnel.EndShutdown.String())
	}
	e.resolver.close()
	e.wg.Wait()
}

// sweepUntilClosed is the clock of all flows, which have no timers of their own.
func (e *Exits) sweepUntilClosed(every time.Duration) {
	sweep := time.NewTicker(every)
	defer sweep.Stop()
	host := time.NewTicker(hostRefresh)
	defer host.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-sweep.C:
			e.sweep()
		case <-host.C:
			e.own.read()
			e.resolver.sweep(time.Now())
		}
	}
}

// sweep ends the flows that have been idle for too long.
func (e *Exits) sweep() {
	now := e.tick.Add(1)
	e.mu.Lock()
	idle, heard := e.idleLocked(now)
	e.mu.Unlock()
	for _, flows := range heard {
		idle = append(idle, beyondHeard(flows, now)...)
	}
	for _, f := range idle {
		f.link.Forget() // first, so that the client's next datagram finds a new flow
		f.close("idle")
	}
}

// idleLocked returns the idle flows, and for each user the flows that are not idle only because their
// remotes are sending.
func (e *Exits) idleLocked(now uint32) (idle []*flow, heard map[*UserExit][]*flow) {
	heard = make(map[*UserExit][]*flow)
	for f := range e.flows {
		switch silent := now - f.used.Load(); {
		case silent <= e.idleTicks, f.ended.Load():
		case silent <= e.heardTicks && now-f.heard.Load() <= e.idleTicks:
			heard[f.user] = append(heard[f.user], f)
		default:
			idle = append(idle, f)
		}
	}
	return idle, heard
}

// beyondHeard returns the flows in excess of maxHeardFlows: those that have not sent for longest.
func beyondHeard(flows []*flow, now uint32) []*flow {
	if len(flows) <= maxHeardFlows {
		return nil
	}
	slices.SortFunc(flows, func(a, b *flow) int { return cmp.Compare(now-a.used.Load(), now-b.used.Load()) })
	return flows[maxHeardFlows:]
}

// enterStream counts a stream, unless the user's limit is reached or Close was called.
func (e *Exits) enterStream(u *UserExit) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || u.streams >= e.cfg.MaxUserStreams {
		return false
	}
	u.streams++
	e.wg.Add(1)
	return true
}

func (e *Exits) leaveStream(u *UserExit) {
	e.mu.Lock()
	u.streams--
	e.mu.Unlock()
	e.wg.Done()
}

// makeRoom reports whether the user, who has MaxUserFlows, will have fewer at once.
func (e *Exits) makeRoom(u *UserExit) bool {
	e.mu.Lock()
	closing, asked := u.closing, time.Since(u.noRoom) < noRoomFor
	e.mu.Unlock()
	if closing > 0 || asked || e.cfg.MakeRoom == nil {
		return closing > 0
	}
	if e.cfg.MakeRoom(u.Name) {
		return true
	}
	e.mu.Lock()
	u.noRoom = time.Now()
	e.mu.Unlock()
	return false
}

// refusedByLimit logs that a limit was reached. A peer can cause that with each datagram, so
// that it must not allocate.
func (e *Exits) refusedByLimit(u *UserExit, what string, err error) {
	e.cfg.Log.LogAttrs(e.ctx, slog.LevelWarn, "refused for want of room",
		slog.String("user", u.Name), slog.String("what", what), slog.Any("error", err))
}
