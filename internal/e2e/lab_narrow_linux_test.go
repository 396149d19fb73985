package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wmproxy/internal/netlab"
	"wmproxy/internal/probe"
	"wmproxy/socks"
)

// A router with this MTU stands before many: IPv6's least, and that of tunnels in tunnels.
const narrowMTU = 1280

// startNarrowLab makes a lab whose router passes on no larger packets, and starts its server at
// addr. There is no client yet.
func startNarrowLab(t *testing.T, addr netip.Addr, icmp bool) *lab {
	t.Helper()
	l := &lab{Net: newNet(t, netlab.Config{}), t: t}
	l.IPv6()
	l.Narrow(narrowMTU, icmp)
	l.in(l.Targets, func() { l.echo = startEchoAt(t, netip.AddrPortFrom(netlab.TargetAddr(), 7).String()) })
	l.servers = []*serverProcess{serverBehind(t, l.launch(l.Servers[0], "server",
		"--listen", netip.AddrPortFrom(addr, labPort).String(), "--state-dir", filepath.Join(t.TempDir(), "server"),
		"--allow", netlab.TargetNetwork))}
	return l
}

// startOver starts a client that has this transport alone, and returns how long its tunnel takes to come up.
func (l *lab) startOver(transport string) time.Duration {
	l.t.Helper()
	began := time.Now()
	l.startClient("--transport", transport)
	l.client.waitUp()
	return time.Since(began)
}

// carriesAll checks that datagrams of several sizes and a stream pass both ways.
func (l *lab) carriesAll() {
	l.t.Helper()
	conn := l.associate()
	defer conn.Close()
	ping(l.t, conn, l.echo)
	pinger := probe.NewPinger(conn, l.echo)
	for _, size := range []int{100, 1200, 8000} {
		if _, err := pinger.Ping(size, time.Second); err != nil {
			l.t.Errorf("a datagram of %d bytes: %v", size, err)
		}
	}
	st := l.connect(l.echo)
	defer st.Close()
	_ = st.SetDeadline(time.Now().Add(patience))
	sent := random(1, 300_000)
	written := pour(st, sent, func() error { return nil })
	got := make([]byte, len(sent))
	if n, err := io.ReadFull(st, got); err != nil || !bytes.Equal(got, sent) {
		l.t.Errorf("%d of %d bytes came back: %v", n, len(sent), err)
	}
	if err := <-written; err != nil {
		l.t.Error(err)
	}
}

func TestInTheLabAPathOf1280BytesCarriesAll(t *testing.T) {
	t.Parallel()
	for _, family := range []struct {
		name string
		addr netip.Addr
	}{{"IPv4", netlab.ServerAddr(0)}, {"IPv6", netlab.ServerAddr6()}} {
		for _, icmp := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s with ICMP %v", family.name, icmp), func(t *testing.T) {
				t.Parallel()
				l := startNarrowLab(t, family.addr, icmp)
				for _, transport := range []string{overQUIC, overYamux} {
					took := l.startOver(transport)
					t.Logf("%s is up after %v", transport, took.Round(time.Millisecond))
					if took > 4*time.Second {
						t.Errorf("%s came up after %v", transport, took)
					}
					l.carriesAll()
					small := slices.ContainsFunc(l.client.Logs(), saying("in small segments"))
					if want := transport == overYamux && !icmp; small != want {
						t.Errorf("%s: a word about small segments: %v, want %v", transport, small, want)
					}
					l.client.Stop()
				}
			})
		}
	}
}

var _ = strings.Contains
var _ socks.Addr
