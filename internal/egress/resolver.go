package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of the resolver. The system's resolver does not tell TTLs, so answers
// are kept for a time that is short for any of them.
const (
	resolveTimeout = 5 * time.Second
	keepAnswer     = 60 * time.Second
	keepFailure    = 5 * time.Second
	maxAnswers     = 4096 // names kept, pending ones included
	maxLookups     = 64   // under way at once
	maxWaiters     = 8192 // callbacks waiting, over all names
	maxAddrs       = 16   // kept of one answer
)

var (
	errBusy    = errors.New("too many names are being resolved")
	errBadName = errors.New("not a domain name")
	errNoAddr  = errors.New("the name has no address")
)

// resolver turns names into addresses, off the path of whoever asks. Questions for
// one name share one look-up; answers are kept, failures for a short while.
type resolver struct {
	lookup   func(ctx context.Context, name string) ([]netip.Addr, error)
	routable func(netip.Addr) bool

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	answers map[string]*answer
	queue   []*answer // waiting for one of maxLookups
	running int
	waiters int
	closed  bool
}

// answer is what is known of one name.
type answer struct {
	name    string
	pending bool
	waiting []func([]netip.Addr, error)
	addrs   []netip.Addr // never changed once set
	err     error
	until   time.Time // end of a pending answer's time, or of a known one's
}

func newResolver(lookup func(context.Context, string) ([]netip.Addr, error), routable func(netip.Addr) bool) *resolver {
	r := &resolver{lookup: lookup, routable: routable, answers: make(map[string]*answer)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// resolve answers at once if it can: then done is true. Otherwise it calls then,
// once, from a goroutine of the resolver, within resolveTimeout or little more.
// The addresses are those to try, in order: routable ones if there are any, IPv4 first.
func (r *resolver) resolve(name string, then func([]netip.Addr, error)) (addrs []netip.Addr, done bool, err error) {
	if !validName(name) {
		return nil, true, errBadName
	}
	name = strings.ToLower(name)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.answers[name]
	if a != nil && !a.pending {
		if now.Before(a.until) {
			return a.addrs, true, a.err
		}
		delete(r.answers, name)
		a = nil
	}
	if r.waiters >= maxWaiters || r.closed {
		return nil, true, errBusy
	}
	if a == nil {
		if !r.makeRoom() {
			return nil, true, errBusy
		}
		a = &answer{name: name, pending: true, until: now.Add(resolveTimeout)}
		r.answers[name] = a
		r.begin(a)
	}
	a.waiting = append(a.waiting, then)
	r.waiters++
	return nil, false, nil
}

// begin starts the look-up of a, or puts it in line.
func (r *resolver) begin(a *answer) {
	if r.running >= maxLookups {
		r.queue = append(r.queue, a)
		return
	}
	r.running++
	r.wg.Go(func() { r.work(a) })
}

// work looks up a and then whatever is in line.
func (r *resolver) work(a *answer) {
	for a != nil {
		addrs, err := r.ask(a)
		a = r.settle(a, addrs, err)
	}
}

func (r *resolver) ask(a *answer) ([]netip.Addr, error) {
	ctx, cancel := context.WithDeadline(r.ctx, a.until)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("resolve: %w", err) // spent all its time in line
	}
	found, err := r.lookup(ctx, a.name)
	if err != nil {
		return nil, fmt.Errorf("resolve: %w", err)
	}
	addrs := r.order(found)
	if len(addrs) == 0 {
		return nil, errNoAddr
	}
	return addrs, nil
}

// order sorts IPv4 first and leaves out what the host has no route to, unless
// that is all there is: then the dial finds the true error.
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

// settle makes a's answer known and returns the next in line.
func (r *resolver) settle(a *answer, addrs []netip.Addr, err error) (next *answer) {
	r.mu.Lock()
	a.pending, a.addrs, a.err = false, addrs, err
	a.until = time.Now().Add(keepAnswer)
	if err != nil {
		a.until = time.Now().Add(keepFailure)
	}
	waiting := a.waiting
	a.waiting = nil
	r.waiters -= len(waiting)
	if len(r.queue) > 0 {
		next = r.queue[0]
		r.queue[0] = nil
		r.queue = r.queue[1:]
	} else {
		r.queue = nil
		r.running--
	}
	r.mu.Unlock()
	for _, then := range waiting {
		then(addrs, err)
	}
	return next
}

// makeRoom keeps the cache within its bound. A few entries are looked at, in the
// map's random order, and the one with the least time left goes.
func (r *resolver) makeRoom() bool {
	if len(r.answers) < maxAnswers {
		return true
	}
	var out *answer
	looked := 0
	for _, a := range r.answers {
		if a.pending {
			continue
		}
		if out == nil || a.until.Before(out.until) {
			out = a
		}
		if looked++; looked == 16 {
			break
		}
	}
	if out == nil {
		return false // all pending
	}
	delete(r.answers, out.name)
	return true
}

// sweep forgets answers whose time is over.
func (r *resolver) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, a := range r.answers {
		if !a.pending && !now.Before(a.until) {
			delete(r.answers, name)
		}
	}
	if len(r.answers) == 0 {
		r.answers = make(map[string]*answer) // a map never shrinks
	}
}

// close fails what is pending and returns when nothing runs.
func (r *resolver) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
}

// validName says whether a name is worth asking for: 1 to 253 bytes and a
// trailing dot at most (RFC 1035 section 2.3.4 in text form), no spaces,
// control bytes or zones. Whether it exists is for the system's resolver.
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

// systemLookup asks the system: its hosts file, its DNS servers.
func systemLookup(ctx context.Context, name string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
}

// hasRoute says whether the host has a route to ip. Connecting a UDP socket asks
// the routing table and sends nothing.
func hasRoute(ip netip.Addr) bool {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 53)))
	if err != nil {
		return false
	}
	c.Close()
	return true
}
