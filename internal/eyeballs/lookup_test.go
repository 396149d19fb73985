package eyeballs

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestUnansweredIPv6LookupCostsOneDelay(t *testing.T) {
	const ms = time.Millisecond
	failed := errors.New("no such name")
	for name, test := range map[string]struct {
		both, four time.Duration // until the answer; 0 is never
		err        error         // of both
		want       string        // the network of the answer
		took       time.Duration
		fails      error
	}{
		"both families in time":               {10 * ms, 10 * ms, nil, "ip", 10 * ms, nil},
		"no answer for IPv6":                  {0, 10 * ms, nil, "ip4", Delay + 10*ms, nil},
		"slow for both":                       {300 * ms, 200 * ms, nil, "ip", 300 * ms, nil},
		"no answer at all":                    {0, 0, nil, "", 5 * time.Second, context.DeadlineExceeded},
		"a late failure":                      {400 * ms, 0, failed, "", 400 * ms, failed},
		"a late failure after an IPv4 answer": {400 * ms, 10 * ms, failed, "ip4", Delay + 10*ms, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				by := map[string]netip.Addr{"ip": netip.MustParseAddr("2001:db8::1"), "ip4": netip.MustParseAddr("192.0.2.1")}
				lookup := func(ctx context.Context, network, _ string) ([]netip.Addr, error) {
					wait, err := test.both, test.err
					if network == "ip4" {
						wait, err = test.four, nil
					}
					if wait == 0 {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					select {
					case <-ctx.Done():
						return nil, ctx.Err()
					case <-time.After(wait):
						return []netip.Addr{by[network]}, err
					}
				}
				began := time.Now()
				got, err := Lookup(ctx, lookup, "name.example")
				if took := time.Since(began); took != test.took {
					t.Errorf("took %v, want %v", took, test.took)
				}
				if !errors.Is(err, test.fails) || test.want != "" && (len(got) != 1 || got[0] != by[test.want]) {
					t.Errorf("got %v, %v, want the answer for %q, %v", got, err, test.want, test.fails)
				}
			})
		})
	}
}
