package egress

import (
	"log/slog"
	"net"
	"testing"

	"github.com/vishvananda/netlink"

	"wmproxy/internal/netlab"
)

// No goroutine follows the events here: they are read when a connection is judged.
func TestConnectionToNewAddressIsRefused(t *testing.T) {
	if err := netlab.Missing(); err != nil {
		t.Skip(err)
	}
	n := netlab.New(t, netlab.Config{})
	err := n.Targets.In(func() error {
		ln, err := net.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			return err
		}
		defer ln.Close()
		o := newOwnAddrs(newPolicy(nil, nil, nil), slog.New(slog.DiscardHandler))
		defer o.events.close()
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, ip := range []string{"9.9.9.1", "9.9.9.2", "9.9.9.3"} {
			to := &net.TCPAddr{IP: net.ParseIP(ip), Port: ln.Addr().(*net.TCPAddr).Port}
			if ap := to.AddrPort(); !o.policy.permits(ap) {
				t.Errorf("%v is refused before the host has it", ap)
			}
			addr, err := netlink.ParseAddr(ip + "/24") // of one subnet: connections to the second leave from the first
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
			conn, err := net.DialTCP("tcp", nil, to)
			if err != nil {
				return err
			}
			defer conn.Close()
			if o.permits(conn) {
				t.Errorf("a connection from %v to %v may stay", conn.LocalAddr(), conn.RemoteAddr())
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
