package e2e

import (
	"fmt"
	"math"
	"testing"
	"time"

	"wmproxy/internal/netlab"
)

// The README has these figures for lossy paths.
func TestInTheLabQUICAddsNoLoss(t *testing.T) {
	t.Parallel()
	const (
		datagrams = 3000
		oneWay    = 25 * time.Millisecond
	)
	fast := rhythm{Every: 5 * time.Millisecond, Size: voice.Size} // the same in less time
	for _, percent := range []int{1, 5, 10} {
		for _, kind := range []string{overQUIC, overYamux} {
			t.Run(fmt.Sprintf("%d %% over %s", percent, kind), func(t *testing.T) {
				t.Parallel()
				l := startLab(t, netlab.Config{Path: netlab.Symmetric(netlab.Path{Delay: oneWay})}, "--transport", kind)
				c, plain := l.startCall(fast), l.startPlainCall(voice)
				c.flowing(waitTimeout)
				protocol := netlab.UDP
				if kind == overYamux {
					protocol = netlab.TCP
				}
				l.Drop([]netlab.Direction{netlab.Up}, protocol, netlab.Share(float64(percent)/100))
				before, from, plainFrom := l.Counts(netlab.Up, protocol), c.now(), plain.now()
				during((datagrams + 100) * fast.Every)
				after, to := l.Counts(netlab.Up, protocol), c.now()
				link := plain.between(plainFrom, plain.now())
				l.Mend()
				c.Stop()
				plain.Stop()

				f := c.between(from, to)
				seen, dropped := after.Seen-before.Seen, after.Dropped-before.Dropped
				p := float64(dropped) / float64(seen)
				t.Logf("the router dropped %d of %d packets, %.2f %%; %v; one way p50 %v, p99 %v",
					dropped, seen, 100*p, f, tenths(f.Up50), tenths(f.Up99))
				t.Logf("the link's own: %v; %s", link, c.kept())
				if f.Sent < datagrams {
					t.Errorf("only %d were sent", f.Sent)
				}
				if kind == overYamux {
					return // shown beside it
				}
				// Both the dropped packets and their number are random.
				n := float64(f.Sent)
				deviation := math.Sqrt(n * p * (1 - p) * (1 + n/float64(seen)))
				if off := math.Abs(float64(f.LostUp) - n*p); off > 3*deviation {
					c.fault(f, "want %.0f ± %.0f lost on the way up", n*p, 3*deviation)
				}
				if down := f.Lost - f.LostUp; down > f.Sent/500 {
					c.fault(f, "%d datagrams are lost on the way down, which loses none", down)
				}
				if f.P99 >= 2*link.P99 {
					c.fault(f, "the RTT's p99 is twice the link's %v or more", link.P99)
				}
			})
		}
	}
}
