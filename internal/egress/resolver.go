package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"wmproxy/internal/eyeballs"
)

// Bounds of the resolver. The system's resolver does not return TTLs, so that answers are kept
// for a time shorter than most.
const (
	resolveTimeout = 5 * time.Second
	maxWait        = 2 * resolveTimeout
	keepAnswer     = 60 * time.Second
	keepFailure    = 5 * time.Second
	maxAnswers     = 4096 // names kept, beside names being looked up
	maxUserLookups = 256  // waiting callbacks of one user
	maxAddrs       = 16   // of one answer
)

var (
	errBusy    = errors.New("too many names are being resolved")
	errBadName = errors.New("not a domain name")
	errNoAddr  = errors.New("the name has no address")
)

// resolver resolves names without blocking its callers. Questions for the same name share a
// look-up. Answers are cached, failures for a short time. Users share the slots for look-ups,
// see slots.go.
type resolver struct {
	lookup   func(ctx context.Context, name string) ([]netip.Addr, error)
	routable func(netip.Addr) bool

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	answers map[string]*answer
	kept    int       // answers that are not pending
	running []*lookup // at most maxLookups, oldest first
	lines   []*asker  // users with names in line, in turn
	closed  bool
}

// answer is the addresses of a name, or the state of its look-up.
type answer struct {
	name  string
	addrs []netip.Addr // never changed once set
	err   error
	found time.Time
	until time.Time // the end of the time of a pending or a known answer

	// While the answer is pending:
	pending bool
	zone    string
	waiting []waiter
	latest  time.Time   // a bound of until
	asker   *asker      // the user of the slot or the place in line
	lookup  *lookup     // nil while the name is in line
	expiry  *time.Timer // fails the name if it is still in line
}

// waiter is a callback and its user.
type waiter struct {
	asker *asker
	then  func([]netip.Addr, error)
}

func newResolver(lookup func(context.Context, string) ([]netip.Addr, error), routable func(netip.Addr) bool) *resolver {
	r := &resolver{lookup: lookup, routable: routable, answers: make(map[string]*answer)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// resolve returns the addresses and done = true if it knows them. Otherwise it calls then, once,
// from a goroutine of the resolver, within resolveTimeout or, if another user asks for the same
// name meanwhile, maxWait. It does not use an answer older than maxAge. The addresses are in the
// order in which to try them: routable ones if there are any, IPv4 first.
func (r *resolver) resolve(u *asker, name string, maxAge time.Duration, then func([]netip.Addr, error)) (addrs []netip.Addr, done bool, err error) {
	if !validName(name) {
		return nil, true, errBadName
	}
	name = strings.ToLower(name)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.answers[name]; a != nil && !a.pending {
		if now.Before(a.until) && (a.err != nil || now.Sub(a.found) <= maxAge) {
			return a.addrs, true, a.err
		}
		r.forget(a)
	}
	if r.closed || u.waiting >= maxUserLookups && !r.shed(u) {
		return nil, true, errBusy
	}
	u.waiting++
	a := r.answers[name] // after shed, which may have removed it
	if a == nil {
		a = &answer{name: name, zone: zoneOf(name), pending: true, waiting: []waiter{{u, then}}, latest: now.Add(maxWait)}
		r.answers[name] = a
		r.enter(u, a)
		return nil, false, nil
	}
	a.waiting = append(a.waiting, waiter{u, then})
	if a.lookup == nil && u.running < a.asker.running {
		r.leaveLine(a) // the line of the other user may be long
		r.enter(u, a)
	}
	return nil, false, nil
}

// settle makes a pending answer a known one and returns the waiters to call. It does not keep an
// error unless keep is set.
func (r *resolver) settle(a *answer, addrs []netip.Addr, err error, keep bool) (waiting []waiter) {
	a.expiry.Stop()
	waiting = a.waiting
	for _, w := range waiting {
		w.asker.waiting--
	}
	if !keep {
		a.pending = false
		delete(r.answers, a.name)
		return waiting
	}
	now := time.Now()
	for r.kept >= maxAnswers {
		out, _ := oldest(r.answers, func(a *answer) (int64, bool) { return int64(now.Sub(a.until)), !a.pending })
		r.forget(r.answers[out])
	}
	r.kept++
	*a = answer{name: a.name, addrs: addrs, err: err, found: now, until: now.Add(keepAnswer)}
	if err != nil {
		a.until = now.Add(keepFailure)
	}
	return waiting
}

// forget removes an answer that is not pending.
func (r *resolver) forget(a *answer) {
	delete(r.answers, a.name)
	r.kept--
}

// tell calls the waiters. The caller must not hold r.mu.
func tell(waiting []waiter, addrs []netip.Addr, err error) {
	for _, w := range waiting {
		w.then(addrs, err)
	}
}

// ask looks a name up.
func (r *resolver) ask(ctx context.Context, name string) ([]netip.Addr, error) {
	found, err := r.lookup(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("resolve: %w", err)
	}
	addrs := r.order(found)
	if len(addrs) == 0 {
		return nil, errNoAddr
	}
	return addrs, nil
}

// order sorts IPv4 first and leaves out addresses without a route, unless there are no others:
// then the dial returns the true error.
func (r *resolver) order(found []netip.Addr) []netip.Addr {
	var addrs []netip.Addr
	for _, ip := range found {
		if ip = ip.Unmap(); ip.IsValid() && !slices.Contains(addrs, ip) {
			addrs = append(addrs, ip)
		}
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	addrs = addrs[:min(len(addrs), maxAddrs)]
	var usable []netip.Addr
	for _, ip := range addrs {
		if r.routable(ip) {
			usable = append(usable, ip)
		}
	}
	if len(usable) == 0 {
		return addrs
	}
	return usable
}

// sweep removes expired answers.
func (r *resolver) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.answers {
		if !a.pending && !now.Before(a.until) {
			r.forget(a)
		}
	}
	if len(r.answers) == 0 {
		r.answers = make(map[string]*answer) // a map never shrinks
	}
}

// close fails all pending names and returns when all look-ups have ended.
func (r *resolver) close() {
	r.mu.Lock()
	r.closed = true
	var waiting []waiter
	for _, u := range r.lines {
		for _, a := range u.line {
			waiting = append(waiting, r.settle(a, nil, errBusy, false)...)
		}
		u.line = nil
	}
	r.lines = nil
	r.mu.Unlock()
	tell(waiting, nil, errBusy)
	r.cancel()
	r.wg.Wait()
}

// validName reports whether a name can exist: 1 to 253 bytes and at most a trailing dot (RFC
// 1035 section 2.3.4 in text form), no spaces, control bytes or zones.
func validName(name string) bool {
	if n := len(strings.TrimSuffix(name, ".")); n == 0 || n > 253 {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 0x7f || c == '%' {
			return false
		}
	}
	return true
}

// systemLookup looks a name up in the hosts file and by the DNS servers of the system.
func systemLookup(ctx context.Context, name string) ([]netip.Addr, error) {
	return eyeballs.Lookup(ctx, system.LookupNetIP, name)
}

// system is Go's own resolver on systems on which it reads the settings. A call into the C
// library cannot be canceled, and their number is limited.
var system = &net.Resolver{
	PreferGo: runtime.GOOS != "darwin" && runtime.GOOS != "windows",
	Dial:     dialDNS,
}

// dialDNS connects to a DNS server and closes the connection when ctx ends. net.Resolver does
// not (Go 1.26): a canceled look-up would keep its sockets for the five seconds of
// resolv.conf's timeout.
func dialDNS(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	return c, nil
}

// hasRoute reports whether the host has a route to ip. It connects a UDP socket, which sends
// nothing.
func hasRoute(ip netip.Addr) bool {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 53)))
	if err != nil {
		return false
	}
	c.Close()
	return true
}
