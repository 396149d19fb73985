package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"wmproxy/internal/probe"
	"wmproxy/socks"
)

// The applications do not notice the restart: they use the same association.
func TestAssociationsSurviveServerRestart(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux, overBoth}, func(t *testing.T, kind string) {
		for _, end := range []struct {
			name string
			end  func(*serverProcess)
		}{
			{"stopped", func(s *serverProcess) { s.Stop() }},
			{"killed", func(s *serverProcess) { s.Kill() }},
		} {
			t.Run(end.name, func(t *testing.T) {
				s := startServer(t)
				c := startClient(t, s.Link, "--transport", kind)
				echo := startEcho(t)
				conn := associate(t, c.Socks())
				ping(t, conn, echo)

				end.end(s)
				began := time.Now()
				again := startServerIn(t, s.StateDir, s.Addr.String(), loopbackAllowed...)
				if again.Link != s.Link {
					t.Error("the link has changed")
				}
				ping(t, conn, echo)
				took := time.Since(began)
				if took > 10*time.Second {
					t.Errorf("datagrams pass %v after the restart", took)
				}
				if got := replyTo(t, c.Socks(), echo); got != socks.ReplySucceeded {
					t.Errorf("a stream: reply %d", got)
				}
				t.Logf("datagrams pass %v after the restart", took.Round(time.Millisecond))
			})
		}
	})
}

func TestClientMayStartBeforeItsServer(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.Stop()
	c := startClientAlone(t, s.Link)
	echo := startEcho(t)
	conn := associate(t, c.Socks())
	if _, err := probe.NewPinger(conn, echo).Ping(10, 300*time.Millisecond); !errors.Is(err, probe.ErrNoReply) {
		t.Errorf("without a server: %v", err)
	}
	if got := replyTo(t, c.Socks(), echo); got != socks.ReplyGeneralFailure {
		t.Errorf("a stream without a server: reply %d, want %d", got, socks.ReplyGeneralFailure)
	}
	c.WaitLog("the tunnel being down", func(l logLine) bool { return strings.HasPrefix(l.Msg, "tunnel down, trying again: ") })
	began := time.Now()
	startServerIn(t, s.StateDir, s.Addr.String(), loopbackAllowed...)
	ping(t, conn, echo)
	t.Logf("datagrams pass %v after the server's start", time.Since(began).Round(time.Millisecond))
}

// The wait for a server that was away for long, came back for three seconds and went for one is
// short again.
func TestBackoffEndsWithFirstSuccess(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.Stop()
	c := startClientAlone(t, s.Link, "--transport", "yamux")
	up := containing("tunnel up: ")
	time.Sleep(10 * time.Second) // until the waits are about eight seconds, and the next 16
	s = startServerIn(t, s.StateDir, s.Addr.String())
	_, next := c.WaitLogAfter(0, "the tunnel being up", up)
	time.Sleep(3 * time.Second)
	s.Kill()
	gone := time.Now()
	time.Sleep(time.Second)
	startServerIn(t, s.StateDir, s.Addr.String())
	began := time.Now()
	bound := max(5*time.Second, 3*began.Sub(gone)) // waits double while the server starts
	c.WaitLogAfter(next, "the tunnel being up again", up)
	took := time.Since(began)
	t.Logf("attached %v after the server was back", took.Round(time.Millisecond))
	if took > bound {
		t.Errorf("attached %v after the server was back, want at most %v", took, bound)
	}
}

// A client that was accepted once does not exit if the server refuses it later.
func TestRefusalAfterSuccessDoesNotEndClient(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--token", "alice:first-secret-of-alice")
	c := startClient(t, s.Link)
	conn := associate(t, c.Socks())
	s.Stop()
	again := startServerIn(t, s.StateDir, s.Addr.String(), "--token", "alice:second-secret-of-alice")
	c.WaitLog("the refusal", containing("does not know this user and token"))
	again.Stop()
	if !c.running() {
		t.Fatal("the client has ended")
	}
	associate(t, c.Socks())
	if _, err := conn.WriteToAddr([]byte("x"), address("127.0.0.1:9")); err != nil {
		t.Errorf("the old association: %v", err)
	}
}
