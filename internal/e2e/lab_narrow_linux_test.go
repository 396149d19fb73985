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
)

// narrowMTU is a common MTU: the minimum of IPv6, and that of tunnels in tunnels.
const narrowMTU = 1280

// startNarrowLab makes a lab with a router that drops larger packets, and starts its server at
// addr. It starts no client.
func startNarrowLab(t *testing.T, addr netip.Addr, icmp bool) *lab {
	t.Helper()
	l := newLab(t, netlab.Config{})
	l.IPv6()
	l.Narrow(narrowMTU, icmp)
	l.startServerOn(addr)
	return l
}

// startServerOn starts the lab's first server at one of its addresses.
func (l *lab) startServerOn(addr netip.Addr) {
	l.t.Helper()
	l.servers = []*serverProcess{serverBehind(l.t, l.launch(l.Servers[0], "server",
		"--listen", netip.AddrPortFrom(addr, labPort).String(), "--state-dir", filepath.Join(l.t.TempDir(), "server"),
		"--allow", netlab.TargetNetwork))}
}

// startOver starts a client with this transport alone, and returns the time until its tunnel is up.
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
		_, err := pinger.Ping(size, time.Second)
		for tries := 1; err != nil && tries < 3; tries++ { // one may be lost
			_, err = pinger.Ping(size, time.Second)
		}
		if err != nil {
			l.t.Errorf("a datagram of %d bytes: %v", size, err)
		}
	}
	st := l.connect(l.echo)
	defer st.Close()
	_ = st.SetDeadline(time.Now().Add(waitTimeout))
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

func TestInTheLabPathOf1280BytesCarriesAll(t *testing.T) {
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
					l.carriesAll()
					if transport == overYamux && !icmp && !slices.ContainsFunc(l.client.Logs(), containing("in small segments")) {
						t.Error("the log does not tell of small segments")
					}
					l.client.Stop()
				}
			})
		}
	}
}

// If a path narrows while the tunnel is up, TCP stops for good: only a new connection learns the MTU.
func TestInTheLabTrafficSurvivesNarrowedPath(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{overQUIC, overYamux} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			l := startLab(t, netlab.Config{}, "--transport", transport)
			l.connects(waitTimeout)
			l.Narrow(narrowMTU, false)
			conn := l.associate()
			pinger := probe.NewPinger(conn, l.echo)
			began := time.Now()
			for {
				_, err := pinger.Ping(8000, 200*time.Millisecond)
				if err == nil {
					break
				}
				if time.Since(began) > waitTimeout {
					t.Fatal(err)
				}
			}
			took := time.Since(began)
			t.Logf("datagrams of 8,000 bytes pass after %v", took.Round(10*time.Millisecond))
			if took > 12*time.Second {
				t.Errorf("after %v", took)
			}
			l.carriesAll()
		})
	}
}

// QUIC cannot work on a narrow path. The log must not blame a firewall.
func TestInTheLabPathTooNarrowForQUICIsNamed(t *testing.T) {
	t.Parallel()
	const mtu = 1150
	l := newLab(t, netlab.Config{})
	l.Narrow(mtu, false)
	l.startServerOn(netlab.ServerAddr(0))
	l.startClient()
	line, _ := l.client.WaitLogAfter(0, "the reason", containing("QUIC needs 1228 bytes"))
	if !strings.HasPrefix(line.Msg, "tunnel up: yamux to ") || strings.Contains(line.Msg, "firewall") {
		t.Errorf("the log says %q", line.Msg)
	}
	l.carriesAll()
}
