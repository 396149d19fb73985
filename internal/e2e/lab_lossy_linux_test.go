package e2e

import (
	"strings"
	"testing"
	"time"

	"wmproxy/internal/netlab"
)

// With cubic, which each host of this lab gives its connections, one stream has 0.3 Mbit/s here.
func TestInTheLabStreamIsFastOnLossyPath(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overYamux, overBoth}, func(t *testing.T, transport string) {
		t.Parallel()
		streamIsFastOnLossyPath(t, transport)
	})
}

func streamIsFastOnLossyPath(t *testing.T, transport string) {
	path := netlab.Path{Delay: 100 * time.Millisecond, Rate: 50_000_000, Loss: 0.03}
	l := newLab(t, netlab.Config{Path: netlab.Symmetric(path)})
	for _, host := range append([]*netlab.Host{l.Home}, l.Servers...) {
		host.SetCongestion("cubic")
	}
	l.startServers()
	l.startClient("--transport", transport)
	l.client.waitUp()
	if transport == overBoth { // the stream must not begin over QUIC
		l.client.WaitLog("both carriers", func(line logLine) bool {
			return strings.Contains(line.Msg, "quic to ") && strings.Contains(line.Msg, "yamux to ")
		})
	}

	const measured = 6 * time.Second
	before := l.startTCPDownload() // the carriers are judged by it, over five seconds each time
	during(12 * time.Second)
	t.Log(before.Finish())
	d := l.startTCPDownload()
	during(2 * time.Second)
	from := d.got.Load()
	during(measured)
	rate := float64(d.got.Load()-from) / measured.Seconds()
	t.Logf("%.1f of %.1f Mbit/s; %s", rate*8/1e6, float64(bulk)*8/1e6, d.Finish())
	if rate < 0.7*bulk {
		t.Errorf("a stream of %d bytes/s has %.0f", bulk, rate)
	}
}
