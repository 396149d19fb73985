package e2e

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"wmproxy/internal/testmain"
	"wmproxy/socks"
)

// Bounds of the lines of one kind about one user in ten seconds, including the last one with the
// number left out.
const (
	mostWarnings    = 5 + 1
	mostInformation = 30 + 1
)

// checkLines stops a process and checks that its log has at most this number of lines with the
// message in ten seconds, and that they account for all that were caused.
func checkLines(t *testing.T, p *process, msg string, caused, most int) {
	t.Helper()
	p.Stop()
	lines, leftOut := 0, 0
	var first, last time.Time
	for _, l := range p.Logs() {
		if l.Msg != msg {
			continue
		}
		lines, leftOut = lines+1, leftOut+l.Int("left_out")
		at, err := time.Parse(time.RFC3339Nano, l.String("time"))
		if err != nil {
			t.Fatal(err)
		}
		if last = at; first.IsZero() {
			first = at
		}
	}
	t.Logf("%d lines in %v say %q, and that %d more are left out", lines, last.Sub(first), msg, leftOut)
	// The intervals that they fall in, of which the first and the last are cut.
	if most *= 2 + int(last.Sub(first)/(10*time.Second)); lines > most || leftOut == 0 {
		t.Errorf("%d lines, want at most %d", lines, most)
	}
	if lines+leftOut < caused {
		t.Errorf("%d lines are accounted for, want %d", lines+leftOut, caused)
	}
}

func TestLogLinesOfAPeerAreBounded(t *testing.T) {
	t.Parallel()
	t.Run("streams beyond the limit", func(t *testing.T) {
		if testmain.Race {
			t.Skip("the race detector takes many times as long for so many streams")
		}
		// Three connections, since each may have 1,023 streams beside the first.
		const limit, each, beyond = 2048, 1000, 300
		s := startServer(t)
		session := newWireSession()
		target := socks.AppendAddrPort(nil, startStalling(t, 0).AddrPort())
		opener := append([]byte{1, byte(len(target))}, target...)
		opened := 0
		open := func(sp *speaker) *quic.Stream {
			st, err := sp.quic.OpenStream()
			if err == nil {
				_, err = st.Write(opener)
			}
			if err != nil {
				t.Fatalf("stream %d: %v", opened, err)
			}
			opened++
			return st
		}
		// All attach before most streams are opened, because a busy server may be late for a
		// handshake. A connection with a stream is not closed for the next one.
		var speakers [3]*speaker
		for i := range speakers {
			speakers[i] = attach(t, overQUIC, s, session, wireHello{attach: uint64(i + 1), withSecret: true})
			st := open(speakers[i])
			_ = st.SetReadDeadline(time.Now().Add(waitTimeout))
			if _, err := st.Read(make([]byte, 1)); err != nil {
				t.Fatalf("stream %d: %v", opened, err)
			}
		}
		for opened < limit {
			open(speakers[opened/each])
		}
		last := speakers[2]
		for refused := 0; refused < beyond; {
			st := open(last)
			_ = st.SetReadDeadline(time.Now().Add(time.Second)) // one of the first that the server sees
			_, err := st.Read(make([]byte, 1))
			reset := (*quic.StreamError)(nil)
			switch {
			case errors.As(err, &reset) && reset.ErrorCode == codeLimit:
				refused++
			case err == nil && opened < limit+2*beyond:
				continue // this one takes the place of an earlier one that has ended
			case !isTimeout(err) || opened > limit+2*beyond:
				t.Fatalf("stream %d: %v", opened, err)
			}
			st.CancelWrite(0)
		}
		checkLines(t, s.process, "too many streams", beyond, mostWarnings)
	})
	t.Run("a wrong token", func(t *testing.T) {
		const often = 200
		s := startServer(t)
		wrong := parsed(t, s)
		wrong.Secret = "not-it"
		for range often {
			c := dialWire(t, overYamux, s.Addr, wireALPN)
			if answer, _ := c.greet(wrong, newWireSession(), wireHello{withSecret: true}); answer != typeRefuse {
				t.Fatalf("message of type %d", answer)
			}
			c.tls.NetConn().Close()
		}
		checkLines(t, s.process, "connection refused", often, mostWarnings)
	})
	t.Run("a wrong SOCKS password", func(t *testing.T) {
		const often = 200
		c := startProxy(t, "--user", "me", "--pass", "the-right-password")
		client := socks.Client{Server: c.Addr.String(), Username: "me", Password: "a-wrong-one", Timeout: waitTimeout}
		for range often {
			if conn, err := client.Connect(t.Context(), socks.Addr{Name: "example.test", Port: 1}); err == nil {
				conn.Close()
				t.Fatal("a wrong password was taken")
			}
		}
		checkLines(t, c.process, "SOCKS5 handshake failed", often, mostWarnings)
	})
	t.Run("associations", func(t *testing.T) {
		const often = 200
		c := startProxy(t)
		for range often {
			associate(t, c.Socks()).Close()
		}
		checkLines(t, c.process, "association ended", often, mostInformation)
	})
	t.Run("CONNECTs that fail", func(t *testing.T) {
		const often = 200
		c := startProxy(t)
		closed := socks.Addr{IP: netip.MustParseAddr("127.0.0.1"), Port: freePorts(t, 1)}
		for range often {
			if conn, err := c.Socks().Connect(t.Context(), closed); err == nil {
				conn.Close()
			}
		}
		checkLines(t, c.process, "connecting failed", often, mostInformation)
	})
}
