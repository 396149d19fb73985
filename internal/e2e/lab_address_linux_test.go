package e2e

import (
	"fmt"
	"testing"

	"wmproxy/internal/netlab"
	"wmproxy/socks"
)

// A service of the server's host that listens on the wildcard address cannot be reached by an address that the host
// has just got.
func TestInTheLabNewServerAddressesAreClosed(t *testing.T) {
	const port, tries = 7777, 20
	l := startLab(t, netlab.Config{})
	host := l.Servers[0]
	l.in(host, func() { startEchoAt(t, fmt.Sprintf("0.0.0.0:%d", port)) })
	reply := func(ip string) (code byte) {
		l.in(l.Home, func() { code = replyTo(t, l.client.Socks(), address(fmt.Sprintf("%s:%d", ip, port))) })
		return code
	}
	conn := l.associate()
	for i := range tries {
		ip := fmt.Sprintf("9.9.9.%d", i+1)
		host.Run("", "ip", "address", "add", ip+"/32", "dev", "lo")
		if got := reply(ip); got != socks.ReplyNotAllowed {
			t.Errorf("%s: reply %d, want %d", ip, got, socks.ReplyNotAllowed)
		}
		writeTo(t, conn, []byte("x"), address(fmt.Sprintf("%s:%d", ip, port)))
	}
	// No interface has this address, but the host accepts packets for it.
	host.Run("", "ip", "route", "add", "local", "9.9.8.0/24", "dev", "lo")
	if got := reply("9.9.8.8"); got != socks.ReplyNotAllowed {
		t.Errorf("a local route: reply %d, want %d", got, socks.ReplyNotAllowed)
	}
	// --allow includes this address.
	const allowed = "198.51.100.3"
	host.Run("", "ip", "address", "add", allowed+"/32", "dev", "lo")
	if got := reply(allowed); got != socks.ReplySucceeded {
		t.Errorf("%s: reply %d, want %d", allowed, got, socks.ReplySucceeded)
	}
	ping(t, conn, address(fmt.Sprintf("%s:%d", allowed, port)))
	conn.Close()
	line := l.servers[0].WaitLog("the flow's end", message("flow ended"))
	if n := line.Int("drops", "policy"); n != tries {
		t.Errorf("%d datagrams are counted as refused by policy, want %d: %s", n, tries, line.Raw)
	}
}
