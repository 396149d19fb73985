package socks

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
)

func TestRefusedConnectCountsAsHalfOpenUntilItIsClosed(t *testing.T) {
	s := &Server{Connect: refuseAll, MaxHalfOpen: 3}
	addr := startServer(t, s, "127.0.0.1:0")
	var clients []net.Conn
	for range 5 {
		c := dialServer(t, addr)
		send(t, c, append([]byte{5, 1, 0}, connectTo([]byte{1, 192, 0, 2, 1, 0, 80})...)...)
		expect(t, c, 5, 0)
		clients = append(clients, c)
	}
	// Of five that linger two had to go.
	eventually(t, "three are left", func() bool { return s.halfOpen.len() == 3 })
	for _, c := range clients {
		c.Close()
	}
	eventually(t, "all are closed", func() bool { return s.halfOpen.len() == 0 })
}

// fullListener has no descriptors for a while.
type fullListener struct {
	net.Listener
	full int
}

func (l *fullListener) Accept() (net.Conn, error) {
	if l.full > 0 {
		l.full--
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return nil, io.EOF
}

func (l *fullListener) Close() error { return nil }

func TestHalfOpenConnectionGoesOnlyIfNobodyHasMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []int
		made := true
		s := &Server{MakeRoom: func(halfOpen int) bool {
			asked = append(asked, halfOpen)
			defer func() { made = false }()
			return made
		}}
		cut := &cutCounter{}
		s.halfOpen.add(cut, 0)
		s.halfOpen.add(cut, 0)
		_ = s.Serve(t.Context(), &fullListener{full: 2})
		if len(asked) != 2 || asked[0] != 2 || asked[1] != 2 || cut.n != 1 {
			t.Errorf("asked %v, %d connections cut; want [2 2] and 1", asked, cut.n)
		}
	})
}

type cutCounter struct{ n int }

func (c *cutCounter) HangUp() { c.n++ }
