package e2e

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"wmproxy/internal/link"
	"wmproxy/internal/probe"
	"wmproxy/internal/status"
	"wmproxy/internal/testmain"
	"wmproxy/socks"
)

// linkOf returns the server's link with another user in it.
func linkOf(t testing.TB, srv *serverProcess, user, secret string) string {
	t.Helper()
	l := parsed(t, srv)
	return link.Link{Name: user, Secret: secret, Host: l.Host, Port: l.Port, Pin: l.Pin}.Text()
}

// startStalling starts a target that stops reading each connection after this many bytes,
// so that its windows have grown before.
func startStalling(t testing.TB, reads int64) socks.Addr {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.CopyN(io.Discard, c, reads)
				<-done
				c.Close()
			})
		}
	})
	t.Cleanup(func() { close(done); ln.Close(); wg.Wait() })
	return socks.AddrFrom(ln.Addr().(*net.TCPAddr).AddrPort())
}

// stall opens streams to a target that stops reading, and keeps this number of them full
// until the test ends: it replaces those that are reset. limit is in bytes.
func stall(t testing.TB, c *socksProcess, target socks.Addr, streams int, limit *rate.Limiter) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for range streams {
		wg.Go(func() {
			b := make([]byte, 64<<10)
			for ctx.Err() == nil {
				conn, err := c.Socks().Connect(ctx, target)
				if err != nil {
					select {
					case <-time.After(50 * time.Millisecond): // refused for now
					case <-ctx.Done():
					}
					continue
				}
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				for err == nil {
					if err = limit.WaitN(ctx, len(b)); err == nil {
						_, err = conn.Write(b)
					}
				}
				stop()
				conn.Close()
			}
		})
	}
}

func TestMemoryForStalledStreamsIsBounded(t *testing.T) {
	if testmain.Race {
		t.Skip("the race detector keeps memory of its own")
	}
	const (
		budget = 64 << 20
		most   = 200 << 10 // KiB resident: twice the budget, for garbage, and the program
	)
	overEach(t, wireKinds, func(t *testing.T, kind string) {
		srv := startServer(t, "--memory", "64MiB", "--token", "honest:first-secret-0123456789", "--token", "mallory:other-secret-0123456789")
		honest := startClient(t, linkOf(t, srv, "honest", "first-secret-0123456789"))
		echo := startEcho(t)
		flow := associate(t, honest.Socks())
		ping(t, flow, echo)
		bad := linkOf(t, srv, "mallory", "other-secret-0123456789")
		target := startStalling(t, 2<<20)
		for range 3 {
			stall(t, startClient(t, bad, "--transport", kind), target, 31, rate.NewLimiter(rate.Inf, 0))
		}
		worst, used, resets := 0, int64(0), uint64(0)
		pinger := probe.NewPinger(flow, echo)
		lost := 0
		for began := time.Now(); time.Since(began) < 4*time.Second; {
			if _, err := pinger.Ping(160, time.Second); err != nil {
				lost++
			}
			worst = max(worst, residentKiB(t, srv.process))
			r, _, err := status.Ask(t.Context(), srv.StateDir)
			if err != nil {
				t.Fatal(err)
			}
			used, resets = max(used, r.Memory.Used), r.Memory.Resets
		}
		t.Logf("at most %d KiB resident and %d MiB of the budget in use, %d resets; %d pings of the honest user lost", worst, used>>20, resets, lost)
		if worst > most {
			t.Errorf("the server held %d KiB, want at most %d", worst, most)
		}
		if lost > 0 {
			t.Errorf("%d pings of the other user got lost", lost)
		}
		c := connect(t, honest.Socks(), echo)
		if _, err := c.Write([]byte("still")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Errorf("a stream of the other user: %v", err)
		}
		if resets == 0 && !strings.Contains(srv.stderr.String(), "memory is short") && used > budget {
			t.Error("nothing was reset beyond the budget")
		}
	})
}
