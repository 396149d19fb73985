package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wmproxy/internal/probe"
	"wmproxy/socks"
)

// The address alone, as for a client behind NAT.
func TestUDPFlagSetsBoundAddress(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"proxy", "--bind", "127.0.0.2:0", "--udp", "127.0.0.1"},
		{"--user", "aaa", "--pass", "bbb-password", "-b", "127.0.0.2:0", "--udp", "127.0.0.1"},
	} {
		p := launch(t, nil, slices.Concat(args, []string{"--state-dir", t.TempDir() + "/proxy"}, loopbackAllowed)...)
		line := p.WaitLog("listening", message("SOCKS5 is listening"))
		entry := &socksProcess{process: p, Addr: netip.MustParseAddrPort(line.String("address"))}
		client := entry.Socks()
		if args[0] == "--user" {
			client.Username, client.Password = "aaa", "bbb-password"
		}
		conn := associate(t, client)
		if got := conn.BoundAddr(); got.IP != netip.MustParseAddr("127.0.0.1") || got.Port == 0 {
			t.Errorf("%v: BND is %v", args, got)
		}
		ping(t, conn, startEcho(t))
	}
}

func TestAssociationsShareASinglePort(t *testing.T) {
	t.Parallel()
	port := freePorts(t, 1)
	p := startProxy(t, "--udp-port", fmt.Sprint(port))
	echo := startEcho(t)
	var conns []*socks.PacketConn
	for range 3 {
		conn := associate(t, p.Socks())
		if got := conn.RelayAddr().Port(); got != port {
			t.Errorf("the association is on port %d, want %d", got, port)
		}
		ping(t, conn, echo) // the first datagram claims the association for this socket
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		ping(t, conn, echo)
		if n, last := conn.WrongSource(); n > 0 {
			t.Errorf("%d datagrams came from %v", n, last)
		}
	}
}

func TestUsedUpPortRangeIsRepliedAndLogged(t *testing.T) {
	t.Parallel()
	const ports = 2
	first := freePorts(t, ports)
	p := startProxy(t, "--udp-port", fmt.Sprintf("%d-%d", first, first+ports-1))
	echo := startEcho(t)
	var conns []*socks.PacketConn
	for range ports {
		conn := associate(t, p.Socks())
		if got := conn.RelayAddr().Port(); got < first || got >= first+ports {
			t.Errorf("the association is on port %d, want one of %d from %d on", got, ports, first)
		}
		ping(t, conn, echo)
		conns = append(conns, conn)
	}
	_, err := p.Socks().Associate(t.Context())
	if reply := (*socks.ReplyError)(nil); !errors.As(err, &reply) || reply.Code != socks.ReplyGeneralFailure {
		t.Errorf("one more: %v, want reply %d", err, socks.ReplyGeneralFailure)
	}
	p.WaitLog("the ports having run out", message("no UDP socket for an association"))

	conns[0].Close()
	p.WaitLog("the association's end", message("association ended"))
	ping(t, associate(t, p.Socks()), echo)
}

func TestIdleAssociationLosesOnlyItsSocket(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux, overProxy}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, []string{"--udp-idle", "1s"}, nil)
		conn := associate(t, tu.Entry.Socks())
		target := listenUDP(t, "127.0.0.1:0")
		var ports []uint16
		for i := range 2 {
			want := []byte{byte(i)}
			writeTo(t, conn, want, addrOf(target))
			_, from := receive(t, target)
			ports = append(ports, from.Port())
			writeUDP(t, target, want, from)
			if got, _ := read(t, conn); string(got) != string(want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if i == 0 {
				line := tu.Exit().WaitLog("the flow's end", message("flow ended"))
				if why := line.String("why"); why != "idle" {
					t.Errorf("the flow ended because of %q", why)
				}
			}
		}
		if ports[0] == ports[1] {
			t.Errorf("both flows have port %d", ports[0])
		}
		if n := tu.Entry.CountLogs(message("association ended")); n > 0 {
			t.Error("the association has ended")
		}
	})
}

// A sender keeps its socket even if the target is silent.
func TestAssociationThatOnlySendsIsNotIdle(t *testing.T) {
	t.Parallel()
	p := startProxy(t, "--udp-idle", "2s")
	conn := associate(t, p.Socks())
	target := listenUDP(t, "127.0.0.1:0")
	ports := map[uint16]bool{}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for range 7 {
		writeTo(t, conn, []byte("x"), addrOf(target))
		_, from := receive(t, target)
		ports[from.Port()] = true
		<-tick.C
	}
	if len(ports) != 1 {
		t.Errorf("the target saw %d sockets", len(ports))
	}
}

func TestAssociationLogHasItsTraffic(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overBoth, overProxy}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, []string{"--log-level", "debug"}, []string{"--user", "alice", "--pass", "a-password-of-alice"})
		client := tu.Entry.Socks()
		client.Username, client.Password = "alice", "a-password-of-alice"
		conn := associate(t, client)
		pinger := probe.NewPinger(conn, startEcho(t))
		const datagrams, size = 5, 100
		for range datagrams {
			if _, err := pinger.Ping(size, waitTimeout); err != nil {
				t.Fatal(err)
			}
		}
		conn.Close()
		line := tu.Entry.WaitLog("the association's end", message("association ended"))
		for key, want := range map[string]int{
			"up_datagrams": datagrams, "up_bytes": datagrams * size,
			"down_datagrams": datagrams, "down_bytes": datagrams * size,
		} {
			if got := line.Int(key); got != want {
				t.Errorf("%s is %d, want %d", key, got, want)
			}
		}
		if line.String("user") != "alice" || line.Int("duration") <= 0 || line.String("drops") != "" {
			t.Errorf("the line is %s", line.Raw)
		}
	})
}
