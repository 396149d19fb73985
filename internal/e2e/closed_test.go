package e2e

import (
	"testing"

	"wmproxy/socks"
)

func TestDeniedDestinationsAreRefused(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overBoth, overProxy}, func(t *testing.T, kind string) {
		t.Parallel()
		tu := startOver(t, kind, []string{"--deny", "127.0.0.9", "--deny", "::ffff:127.0.0.16/124"}, nil)
		open := startEcho(t)
		conn := associate(t, tu.Entry.Socks())
		for _, addr := range []string{"127.0.0.9:0", "127.0.0.20:0"} {
			denied := startEchoAt(t, addr)
			writeTo(t, conn, []byte("x"), denied)
			for _, dst := range []socks.Addr{denied, {Name: denied.IP.String(), Port: denied.Port}} {
				if got := replyTo(t, tu.Entry.Socks(), dst); got != socks.ReplyNotAllowed {
					t.Errorf("%v: reply %d, want %d", dst, got, socks.ReplyNotAllowed)
				}
			}
		}
		ping(t, conn, open)
		if got := replyTo(t, tu.Entry.Socks(), open); got != socks.ReplySucceeded {
			t.Errorf("%v: reply %d, want %d", open, got, socks.ReplySucceeded)
		}
		conn.Close()
		line := tu.Exit().WaitLog("the flow's end", message("flow ended"))
		if n := line.Int("drops", "policy"); n != 2 {
			t.Errorf("%d datagrams are counted as refused by policy, want 2: %s", n, line.Raw)
		}
	})
}

// These addresses look public: a cloud's addresses for its machines, and the address of a server behind a NAT.
func TestAddressesThatLookPublicAreRefused(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--advertise", "203.0.112.1")
	l := parsedLink(t, s.Link)
	if l.Host != "203.0.112.1" {
		t.Fatalf("the link says %s", l.Host)
	}
	l.Host = "127.0.0.1"
	clients := map[string]*socksProcess{"server": startClient(t, l.Text()), "proxy": startProxy(t, "--udp", "203.0.112.1")}
	for _, dst := range []string{"203.0.112.1:80", "[::ffff:203.0.112.1]:80", "168.63.129.16:80", "[64:ff9b::a83f:8110]:80"} {
		for exit, c := range clients {
			if got := replyTo(t, c.Socks(), address(dst)); got != socks.ReplyNotAllowed {
				t.Errorf("%s by the %s: reply %d, want %d", dst, exit, got, socks.ReplyNotAllowed)
			}
		}
	}
}
