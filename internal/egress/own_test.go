package egress

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAdvertisedAddressIsOwn(t *testing.T) {
	for _, test := range []struct {
		name, advertised string
	}{
		{"an address", "8.8.4.4"},
		{"a mapped address", "::ffff:8.8.4.4"},
		{"a name", "me.example"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dns := newFakeDNS("me.example", "8.8.4.4", "me.example", "2001:4860::4")
			close(dns.release)
			e := newExits(t, Config{Advertised: test.advertised, Resolve: dns.lookup})
			own := netip.MustParseAddrPort("8.8.4.4:53")
			eventually(t, "it is refused", func() bool { return !e.policy.permits(own) })
			if other := netip.MustParseAddrPort("8.8.8.8:53"); !e.policy.permits(other) {
				t.Errorf("%v is refused", other)
			}
			e.own.read()
			if e.policy.permits(own) {
				t.Error("it is open after the interfaces were read again")
			}
		})
	}
}

// The name server may start later, and the address may change.
func TestAdvertisedNameIsResolvedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := [][]netip.Addr{nil, addrs("8.8.4.4"), addrs("8.8.8.8")}
		resolve := func(context.Context, string) ([]netip.Addr, error) {
			answer := answers[0]
			answers = answers[1:]
			if answer == nil {
				return nil, errors.New("no server")
			}
			return answer, nil
		}
		o := &ownAddrs{policy: newPolicy(nil, nil, nil), log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { o.followAdvertised(ctx, "me.example", resolve) })
		defer wg.Wait()
		defer cancel()
		for _, step := range []struct {
			after time.Duration
			own   string
		}{{0, ""}, {advertisedRetry, "8.8.4.4"}, {advertisedEvery, "8.8.8.8"}} {
			time.Sleep(step.after)
			synctest.Wait()
			for _, s := range []string{"8.8.4.4", "8.8.8.8"} {
				if refused := !o.policy.permits(netip.MustParseAddrPort(s + ":53")); refused != (s == step.own) {
					t.Errorf("%s later %s is refused: %v", step.after, s, refused)
				}
			}
		}
	})
}

func TestAddressesAreReadWithoutEvents(t *testing.T) {
	o := &ownAddrs{policy: newPolicy(nil, nil, nil), log: slog.New(slog.DiscardHandler)}
	o.catchUp()
	if !o.policy.host.Load().has(netip.MustParseAddr("127.0.0.1")) {
		t.Error("the addresses were not read")
	}
}
