package eyeballs

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// Lookup looks a name up with lookup, which is like net.Resolver's LookupNetIP. If no answer
// has arrived after Delay, it also asks for the IPv4 addresses alone and returns the answer that
// arrives first: some DNS servers do not answer for IPv6, and net.Resolver waits for both families.
// The error is that of the first look-up.
func Lookup(ctx context.Context, lookup func(ctx context.Context, network, host string) ([]netip.Addr, error), name string) ([]netip.Addr, error) {
	type result struct {
		addrs []netip.Addr
		err   error
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ask := func(network string) <-chan result {
		c := make(chan result, 1)
		wg.Go(func() {
			addrs, err := lookup(ctx, network, name)
			c <- result{addrs, err}
		})
		return c
	}
	both, four := ask("ip"), (<-chan result)(nil)
	late := time.NewTimer(Delay)
	defer late.Stop()
	for {
		select {
		case r := <-both:
			return r.addrs, r.err
		case r := <-four:
			if r.err == nil {
				return r.addrs, nil
			}
			four = nil // the look-up for both families decides
		case <-late.C:
			four = ask("ip4")
		}
	}
}
