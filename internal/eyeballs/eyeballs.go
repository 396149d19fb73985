// Package eyeballs looks a name up and dials its addresses so that an address that does
// not answer costs little (Happy Eyeballs, RFC 8305).
package eyeballs

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

const (
	// Delay is the time after which the next address is tried beside the one before it.
	// RFC 8305 section 8 recommends the value.
	Delay = 250 * time.Millisecond

	// maxAddrs bounds the addresses of one name that are tried.
	maxAddrs = 8
)

// Order returns at most eight of addrs, in their order but with the families alternating
// from the first address on (RFC 8305 section 4).
func Order(addrs []netip.Addr) []netip.Addr {
	var families [2][]netip.Addr // that of the first address, and the other
	for _, ip := range addrs {
		which := 0
		if ip.Is4() != addrs[0].Is4() {
			which = 1
		}
		families[which] = append(families[which], ip)
	}
	var ordered []netip.Addr
	for i := range addrs {
		for _, family := range families {
			if i < len(family) && len(ordered) < maxAddrs {
				ordered = append(ordered, family[i])
			}
		}
	}
	return ordered
}

// Dial calls dial for each address in order, of which there must be one: for the next one
// whenever Delay has passed or an attempt has failed. It returns the first connection,
// after it has canceled the other attempts, waited for them, and called discard for their
// connections. If all fail, it returns their errors in the order of the addresses. It
// begins no attempt but the first once ctx is done.
func Dial[C any](ctx context.Context, addrs []netip.Addr, dial func(context.Context, netip.Addr) (C, error), discard func(C)) (C, []error) {
	type result struct {
		attempt int
		conn    C
		err     error
	}
	var (
		none    C
		wg      sync.WaitGroup
		results = make(chan result)
		done    = make(chan struct{})
	)
	ctx, cancel := context.WithCancel(ctx)
	defer wg.Wait()
	defer cancel()
	defer close(done)

	attempt := func(i int) {
		conn, err := dial(ctx, addrs[i])
		select {
		case results <- result{i, conn, err}:
		case <-done:
			if err == nil {
				discard(conn)
			}
		}
	}
	errs := make([]error, len(addrs))
	next := time.NewTimer(0)
	defer next.Stop()
	for begun, failed := 0, 0; ; {
		select {
		case <-next.C:
			if begun < len(addrs) && (begun == 0 || ctx.Err() == nil) {
				i := begun
				wg.Go(func() { attempt(i) })
				begun++
				next.Reset(Delay)
			}
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			errs[r.attempt] = r.err
			failed++
			next.Reset(0)
		}
		if begun > 0 && failed == begun && (begun == len(addrs) || ctx.Err() != nil) {
			return none, errs[:begun]
		}
	}
}
