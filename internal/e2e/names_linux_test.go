package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wmproxy/internal/netlab"
	"wmproxy/internal/probe"
	"wmproxy/socks"
)

// namesLab is a machine without a network, with a DNS server of the test.
type namesLab struct {
	*netlab.Host

	t    *testing.T
	conf string // its resolv.conf
}

// answers returns the addresses of a name, or reports that the DNS server is silent.
type answers func(name string) (addrs []netip.Addr, silent bool)

// mute6 is a name for which the DNS server does not answer queries for IPv6.
const mute6 = "mute6.test"

// startNamesLab makes the machine, or skips the test.
func startNamesLab(t *testing.T, answer answers) *namesLab {
	t.Helper()
	l := &namesLab{Host: newNet(t, netlab.Config{}).Targets, t: t, conf: filepath.Join(t.TempDir(), "resolv.conf")}
	if err := os.WriteFile(l.conf, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var conn net.PacketConn
	l.in(func() { conn = listenUDP(t, "127.0.0.1:53") })
	started := make(chan struct{})
	server := &dns.Server{PacketConn: conn, Handler: answer, NotifyStartedFunc: func() { close(started) }}
	ended := make(chan error, 1)
	go func() { ended <- server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		_ = server.Shutdown()
		<-ended
	})
	return l
}

// ServeDNS answers a query for the addresses of one family.
func (a answers) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	q := query.Question[0]
	name := strings.TrimSuffix(strings.ToLower(q.Name), ".")
	addrs, silent := a(name)
	if silent || name == mute6 && q.Qtype == dns.TypeAAAA {
		return
	}
	reply := new(dns.Msg).SetReply(query)
	if addrs == nil {
		reply.Rcode = dns.RcodeNameError
	}
	for _, ip := range addrs {
		header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET}
		switch {
		case q.Qtype == dns.TypeA && ip.Is4():
			reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: ip.AsSlice()})
		case q.Qtype == dns.TypeAAAA && ip.Is6():
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: header, AAAA: ip.AsSlice()})
		}
	}
	_ = w.WriteMsg(reply)
}

// in runs f on the machine.
func (l *namesLab) in(f func()) {
	l.t.Helper()
	if err := l.In(func() error { f(); return nil }); err != nil {
		l.t.Fatal(err)
	}
}

// launch starts wmproxy on the machine, in a mount namespace with the machine's resolv.conf.
func (l *namesLab) launch(args ...string) (p *process) {
	l.t.Helper()
	const script = `mount --bind "$0" /etc/resolv.conf && exec "$@"`
	cmd := exec.Command("/bin/sh", slices.Concat([]string{"-c", script, l.conf, program}, args)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	l.in(func() { p = launchCommand(l.t, nil, cmd, args) })
	return p
}

// startServer starts a server with a user for each name and returns their links.
func (l *namesLab) startServer(users ...string) (links []string) {
	l.t.Helper()
	args := slices.Concat([]string{
		"server", "--listen", "127.0.0.1:8090", "--state-dir", filepath.Join(l.t.TempDir(), "server"),
	}, loopbackAllowed)
	for _, user := range users {
		args = append(args, "--token", user+":secret-of-"+user)
	}
	parsed := parsed(l.t, serverBehind(l.t, l.launch(args...)))
	for _, user := range users {
		of := parsed
		of.Name, of.Secret = user, "secret-of-"+user
		links = append(links, of.Text())
	}
	return links
}

// startEntrance starts a client, or a proxy if there is no link.
func (l *namesLab) startEntrance(port int, link string, more ...string) *namedEntrance {
	l.t.Helper()
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port))
	args := append([]string{"proxy", "--bind", addr.String()}, loopbackAllowed...)
	if link != "" {
		args = slices.Concat([]string{"client", "--listen", addr.String()}, more, []string{link})
	}
	p := &socksProcess{process: l.launch(withState(l.t, args)...), Addr: addr}
	p.WaitLog("listening", message("SOCKS5 is listening"))
	if link != "" {
		p.waitUp()
	}
	return &namedEntrance{p, l}
}

// namedEntrance is a SOCKS5 entrance on the machine.
type namedEntrance struct {
	*socksProcess
	lab *namesLab
}

func (e *namedEntrance) associate() (conn *socks.PacketConn) {
	e.t.Helper()
	e.lab.in(func() { conn = associate(e.t, e.Socks()) })
	return conn
}

// connects returns the time that a stream to an echo takes to open and to carry data.
func (e *namedEntrance) connects(echo socks.Addr) time.Duration {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), waitTimeout)
	defer cancel()
	began := time.Now()
	if err := e.lab.In(func() error { return connectOnce(ctx, e.Socks(), echo, func() {}) }); err != nil {
		e.t.Fatalf("CONNECT to %v: %v", echo, err)
	}
	return time.Since(began)
}

// floodNames sends to as many names as a user may have looked up at a time.
func (e *namedEntrance) floodNames(zone string) {
	e.t.Helper()
	const associations, names = 4, 64
	for i := range associations {
		conn := e.associate()
		for k := range names {
			writeTo(e.t, conn, []byte("x"), socks.Addr{Name: fmt.Sprintf("n%d-%d.%s", i, k, zone), Port: 9})
		}
	}
}

// Without sharing, a user with 256 names of a silent zone would delay all look-ups for 4.8 s.
func TestInTheLabSilentZoneDelaysOnlyItself(t *testing.T) {
	t.Parallel()
	// It takes a few milliseconds. The rest is for a busy machine.
	const bound = 2 * time.Second
	asked := make(chan struct{}, 10_000)
	l := startNamesLab(t, func(name string) ([]netip.Addr, bool) {
		if strings.HasSuffix(name, "silent.test") {
			asked <- struct{}{}
			return nil, true
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, false
	})
	var echo socks.Addr
	l.in(func() { echo = startEchoAt(t, "127.0.0.1:7") })
	links := l.startServer("greedy", "honest")
	greedy, honest := l.startEntrance(1081, links[0]), l.startEntrance(1082, links[1])
	proxy := l.startEntrance(1083, "")
	names := 0
	fresh := func() socks.Addr { // a name that is in no cache
		names++
		return socks.Addr{Name: fmt.Sprintf("fresh%d.test", names), Port: echo.Port}
	}
	measure := func(what string, e *namedEntrance) {
		t.Helper()
		conn := e.associate()
		for range 5 {
			tcp := e.connects(fresh())
			began := time.Now()
			writeTo(t, conn, []byte("udp"), fresh())
			read(t, conn)
			udp := time.Since(began)
			t.Logf("%s: CONNECT by name %v, UDP by name %v", what, tcp.Round(time.Millisecond/10), udp.Round(time.Millisecond/10))
			if tcp > bound || udp > bound {
				t.Errorf("%s: CONNECT by name %v, UDP by name %v, want %v at most", what, tcp, udp, bound)
			}
		}
	}
	measure("before", honest)
	for _, flooder := range []*namedEntrance{greedy, proxy} {
		flooder.floodNames("silent.test")
		for range 100 {
			<-asked // all slots are in use
		}
	}
	measure("beside a user whose zone is silent", honest)
	// 32 look-ups have up to three sockets each. The rest is for the proxy's own.
	during(2 * time.Second) // a look-up that gave its slot up keeps no socket
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", proxy.PID()))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the proxy has %d descriptors", len(fds))
	if len(fds) > 150 {
		t.Errorf("the proxy has %d descriptors, want 150 at most", len(fds))
	}
	greedy.floodNames("also.silent.test")
	measure("that user", greedy)
	measure("the proxy's one user", proxy)
}

// deafRules drop everything that is sent to two of the machine's addresses.
const deafRules = `table inet deaf {
	chain input {
		type filter hook input priority filter;
		ip daddr ` + deaf4 + ` drop
		ip6 daddr ` + deaf6 + ` drop
	}
}
`

const (
	deaf4 = "127.0.0.66"
	deaf6 = "2001:db8::66"
)

// makeDeaf gives the machine addresses that do not answer.
func (l *namesLab) makeDeaf() {
	l.t.Helper()
	l.Run("", "ip", "-6", "addr", "add", deaf6+"/128", "dev", "lo")
	l.Run(deafRules, "nft", "-f", "-")
}

func TestInTheLabSilentAddressCostsQuarterSecond(t *testing.T) {
	t.Parallel()
	// It takes 250 ms. The rest is for a busy machine, but less than a DNS timeout.
	const bound = 2 * time.Second
	local := netip.MustParseAddr("127.0.0.1")
	zone := map[string][]netip.Addr{
		"four.test": {netip.MustParseAddr(deaf4), local},
		"six.test":  {netip.MustParseAddr(deaf6), local},
		mute6:       {local},
	}
	l := startNamesLab(t, func(name string) ([]netip.Addr, bool) { return zone[name], false })
	l.makeDeaf()
	var echo socks.Addr
	l.in(func() { echo = startEchoAt(t, "127.0.0.1:7") })
	link := l.startServer("ann")[0]
	entries := []*namedEntrance{l.startEntrance(1081, link), l.startEntrance(1082, "")}
	for _, e := range entries {
		for _, host := range []string{"four.test", mute6} {
			took := e.connects(socks.Addr{Name: host, Port: echo.Port})
			t.Logf("%s: CONNECT to %s: %v", e.name, host, took.Round(time.Millisecond))
			if took > bound {
				t.Errorf("%s: CONNECT to %s took %v, want %v at most", e.name, host, took, bound)
			}
		}
	}
	for i, host := range []string{"four.test", "six.test", mute6} {
		for k, transport := range []string{overQUIC, overYamux} {
			named := strings.Replace(link, "127.0.0.1:", host+":", 1)
			began := time.Now()
			c := l.startEntrance(1090+2*i+k, named, "--transport", transport)
			took := time.Since(began)
			t.Logf("%s to %s: up after %v", transport, host, took.Round(time.Millisecond))
			if took > bound+2*time.Second { // the client has to start, too
				t.Errorf("%s to %s: up after %v, want %v at most", transport, host, took, bound+2*time.Second)
			}
			c.Stop()
		}
	}
}

// answersAfter sends two datagrams a second to an echo and returns the time until the first one
// comes back.
func answersAfter(t *testing.T, conn *socks.PacketConn, echo socks.Addr, bound time.Duration) time.Duration {
	t.Helper()
	const pace = 500 * time.Millisecond
	pinger := probe.NewPinger(conn, echo)
	for began := time.Now(); ; {
		_, err := pinger.Ping(100, pace)
		took := time.Since(began)
		switch {
		case err == nil:
			return took
		case !errors.Is(err, probe.ErrNoReply):
			t.Fatal(err)
		case took > bound:
			t.Fatalf("nothing from %v after %v", echo, took)
		}
	}
}

func TestInTheLabDatagramsLeaveSilentAddress(t *testing.T) {
	t.Parallel()
	local := netip.MustParseAddr("127.0.0.1")
	var moved atomic.Bool
	l := startNamesLab(t, func(name string) ([]netip.Addr, bool) {
		switch {
		case name == "two.test":
			return []netip.Addr{netip.MustParseAddr(deaf4), local}, false
		case name == "moving.test" && moved.Load():
			return []netip.Addr{local}, false
		}
		return []netip.Addr{netip.MustParseAddr(deaf4)}, false
	})
	l.makeDeaf()
	var echo socks.Addr
	l.in(func() { echo = startEchoAt(t, "127.0.0.1:7") })
	e := l.startEntrance(1081, l.startServer("ann")[0])

	took := answersAfter(t, e.associate(), socks.Addr{Name: "two.test", Port: echo.Port}, waitTimeout)
	t.Logf("the first of two addresses is deaf: an answer after %v", took.Round(time.Millisecond))
	if took > 10*time.Second {
		t.Errorf("an answer after %v, want about 3s", took)
	}

	conn := e.associate()
	writeTo(t, conn, []byte("x"), socks.Addr{Name: "moving.test", Port: echo.Port})
	during(time.Second) // the flow uses the name's first address
	moved.Store(true)
	took = answersAfter(t, conn, socks.Addr{Name: "moving.test", Port: echo.Port}, 2*time.Minute)
	t.Logf("the name has moved from a deaf address: an answer after %v", took.Round(time.Millisecond))
	if took > 40*time.Second {
		t.Errorf("an answer after %v, want about 30s", took)
	}
}
