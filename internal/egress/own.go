package egress

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"wmproxy/internal/udpio"
)

const (
	// eventPause is the shortest time between two readings of the host's addresses for events.
	eventPause = 20 * time.Millisecond

	// Times for resolving an advertised name: the interval, the one after a failure, and the timeout.
	advertisedEvery   = time.Minute
	advertisedRetry   = 5 * time.Second
	advertisedTimeout = 5 * time.Second

	// maxAdvertised bounds the addresses of the advertised name.
	maxAdvertised = 64
)

// ownAddrs keeps the policy's set of the host's own addresses up to date.
type ownAddrs struct {
	policy *policy
	log    *slog.Logger

	mu         sync.Mutex
	events     *addrEvents  // nil if not available: catchUp then always reads
	stale      bool         // a change could not be read
	advertised []netip.Addr // of no interface; packets to them may return through a NAT
}

func newOwnAddrs(p *policy, log *slog.Logger) *ownAddrs {
	o := &ownAddrs{policy: p, log: log}
	events, err := openAddrEvents()
	switch {
	case err == nil:
		o.events = events
	case !errors.Is(err, errors.ErrUnsupported):
		log.Warn("cannot follow changes of the host's own addresses; they are read after every connection instead", "error", err)
	}
	o.read()
	return o
}

// follow reads the addresses whenever the system reports a change, until ctx ends.
func (o *ownAddrs) follow(ctx context.Context) {
	o.mu.Lock()
	events := o.events
	o.mu.Unlock()
	if events == nil {
		return
	}
	defer context.AfterFunc(ctx, events.close)()
	for events.wait() == nil {
		o.catchUp()
		select {
		case <-ctx.Done():
		case <-time.After(eventPause):
		}
	}
	o.mu.Lock()
	o.events = nil
	o.mu.Unlock()
	events.close()
}

// catchUp reads the addresses if they may have changed. When it returns, all addresses that
// the host had at the call are known.
func (o *ownAddrs) catchUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.events == nil || o.events.take() || o.stale {
		o.readLocked()
	}
}

// read reads the addresses.
func (o *ownAddrs) read() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.readLocked()
}

func (o *ownAddrs) readLocked() {
	h, err := readHostAddrs()
	o.stale = err != nil
	if err != nil {
		o.log.Warn("cannot read the host's own addresses; keeping those known", "error", err)
		return
	}
	for _, ip := range o.advertised {
		h.addrs[ip] = struct{}{}
	}
	o.policy.refresh(h)
}

// permits reports whether conn may stay. The host may have got the remote address since that was permitted before
// the dial.
func (o *ownAddrs) permits(conn *net.TCPConn) bool {
	o.catchUp()
	return o.policy.permitsConn(udpio.AddrPortOf(conn.LocalAddr()), udpio.AddrPortOf(conn.RemoteAddr()))
}

// followAdvertised resolves the name by which clients reach this host periodically until ctx ends.
func (o *ownAddrs) followAdvertised(ctx context.Context, name string, resolve func(context.Context, string) ([]netip.Addr, error)) {
	for ctx.Err() == nil {
		wait := advertisedEvery
		within, cancel := context.WithTimeout(ctx, advertisedTimeout)
		addrs, err := resolve(within, name)
		cancel()
		if err != nil {
			o.log.Debug("the advertised name does not resolve", "name", name, "error", err)
			wait = advertisedRetry
		} else {
			o.setAdvertised(addrs)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// setAdvertised sets the addresses by which clients reach this host.
func (o *ownAddrs) setAdvertised(addrs []netip.Addr) {
	addrs = addrs[:min(len(addrs), maxAdvertised)]
	own := make([]netip.Addr, len(addrs))
	for i, ip := range addrs {
		own[i] = ip.Unmap().WithZone("")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.advertised = own
	o.readLocked()
}
