package e2e

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"wmproxy/internal/testmain"
	"wmproxy/socks"
)

// crowdMost bounds the streams that a client opens at a time.
const crowdMost = 1984

// startHolder starts a target that sends a byte on each connection and then waits for its end.
func startHolder(t testing.TB) socks.Addr {
	t.Helper()
	ln := listenTCP(t, "127.0.0.1:0")
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				_, _ = conn.Write([]byte{1})
				_, _ = conn.Read(make([]byte, 1))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return socks.AddrFrom(ln.Addr().(*net.TCPAddr).AddrPort())
}

// crowdAtOnce is the number of streams of a crowd that are being opened at a time. More would only measure the machine.
const crowdAtOnce = 100

// crowd opens n streams and returns them and the time that it took.
func crowd(t testing.TB, c *socks.Client, to socks.Addr, n int) (conns []net.Conn, took time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*waitTimeout)
	defer cancel()
	began := time.Now()
	var wg sync.WaitGroup
	conns = make([]net.Conn, n)
	failures := make(chan error, n)
	asking := make(chan struct{}, crowdAtOnce)
	for i := range conns {
		asking <- struct{}{}
		wg.Go(func() {
			defer func() { <-asking }()
			conn, err := c.Connect(ctx, to)
			if err != nil {
				failures <- err
				return
			}
			conns[i] = conn
			_ = conn.SetDeadline(time.Now().Add(2 * waitTimeout))
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				failures <- err
			}
		})
	}
	wg.Wait()
	took = time.Since(began)
	t.Cleanup(func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	})
	if len(failures) > 0 {
		t.Fatalf("%d of %d streams failed within %v: %v", len(failures), n, took, <-failures)
	}
	return conns, took
}

// notUnderRace skips a test of thousands of streams, which takes minutes under the race detector.
func notUnderRace(t *testing.T) {
	t.Helper()
	if testmain.Race {
		t.Skip("thousands of streams take too long under the race detector")
	}
}

func TestManyStreamsOfOneClientOpen(t *testing.T) {
	notUnderRace(t)
	const streams, bound = 1500, 15 * time.Second // less than the wait of a stream without a free carrier
	overEach(t, []string{overBoth, overYamux, overQUIC}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		_, took := crowd(t, tu.Entry.Socks(), startHolder(t), streams)
		t.Logf("%d streams open after %v", streams, took.Round(time.Millisecond))
		if took > bound {
			t.Errorf("%d streams took %v", streams, took)
		}
	})
}

func TestStreamBeyondClientLimitIsRefusedAtOnce(t *testing.T) {
	notUnderRace(t)
	overEach(t, []string{overBoth, overYamux}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		c, to := tu.Entry.Socks(), startHolder(t)
		conns, _ := crowd(t, c, to, crowdMost)
		began := time.Now()
		reply := replyTo(t, c, to)
		if took := time.Since(began); reply != socks.ReplyGeneralFailure || took > time.Second {
			t.Errorf("reply %d after %v, want %d at once", reply, took, socks.ReplyGeneralFailure)
		}
		line := tu.Entry.WaitLog("the refusal", message("refused for want of room"))
		if !strings.Contains(line.String("error"), "no more TCP streams may be open for this user") {
			t.Errorf("the log says %s", line.Raw)
		}
		for _, conn := range conns[:10] {
			conn.Close()
		}
		deadline := time.Now().Add(waitTimeout)
		for replyTo(t, c, to) != socks.ReplySucceeded {
			if time.Now().After(deadline) {
				t.Fatal("there is room again, and no stream opens")
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

// A stream over silent carriers fails as soon as one without carriers.
func TestStreamToDeadServerFailsIn5Seconds(t *testing.T) {
	t.Parallel()
	const promised = 5 * time.Second
	overEach(t, []string{overBoth, overYamux, overQUIC}, func(t *testing.T, kind string) {
		t.Parallel()
		f, c := startThrough(t, "--transport", kind)
		echo := startEcho(t)
		connect(t, c.Socks(), echo).Close()
		f.swallowTCP()
		f.cutUDP(true)
		var asked sync.WaitGroup
		ask := func() {
			began := time.Now()
			reply := replyTo(t, c.Socks(), echo)
			if took := time.Since(began); reply != socks.ReplyGeneralFailure || took > promised+2*time.Second {
				t.Errorf("reply %d after %v, want %d after %v", reply, took, socks.ReplyGeneralFailure, promised)
			}
		}
		asked.Go(ask)
		c.WaitLog("the doubt", containing(" in doubt: nothing has come since "))
		asked.Go(ask) // all carriers are suspect now
		asked.Wait()
		c.WaitLog("why", containing("did not answer"))
	})
}
