package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"wmproxy/internal/netlab"
	"wmproxy/socks"
)

// Timers of the lab's processes, shorter than the defaults if these would make the tests long.
// Tests of documented times use the defaults.
var (
	labServerTimers = []string{"--hold", "30s", "--dead", "10s"}
	labClientTimers = []string{"--dead", "10s", "--steady", "2s"}
)

const (
	labPort  = 8090
	labSOCKS = "127.0.0.1:1080"
)

// lab is a server and a client with a network between them.
type lab struct {
	*netlab.Net

	t       *testing.T
	servers []*serverProcess // the same ones as the network's
	client  *socksProcess
	echo    socks.Addr // at the targets, UDP and TCP
	before  []holdings // of the servers and the client, at rest
}

// newNet makes a network, or skips the test.
func newNet(t *testing.T, cfg netlab.Config) *netlab.Net {
	t.Helper()
	if err := netlab.Missing(); err != nil {
		unable(t, err.Error())
	}
	return netlab.New(t, cfg)
}

// startLab makes a network with servers in it, and a client whose tunnel is up.
func startLab(t *testing.T, cfg netlab.Config, clientArgs ...string) *lab {
	t.Helper()
	l := startLabServer(t, cfg)
	l.startClient(clientArgs...)
	l.client.waitUp()
	return l
}

// startLabServer is like startLab without a client.
func startLabServer(t *testing.T, cfg netlab.Config) *lab {
	t.Helper()
	l := newLab(t, cfg)
	l.startServers()
	return l
}

// newLab makes a lab without a server.
func newLab(t *testing.T, cfg netlab.Config) *lab {
	t.Helper()
	l := &lab{Net: newNet(t, cfg), t: t}
	l.in(l.Targets, func() { l.echo = startEchoAt(t, netip.AddrPortFrom(netlab.TargetAddr(), 7).String()) })
	return l
}

// startServers starts all of the lab's servers.
func (l *lab) startServers() {
	l.t.Helper()
	for i, host := range l.Servers {
		l.servers = append(l.servers, &serverProcess{StateDir: filepath.Join(l.t.TempDir(), host.Name)})
		l.startServer(i)
	}
}

// in runs f on a host.
func (l *lab) in(h *netlab.Host, f func()) {
	l.t.Helper()
	if err := h.In(func() error { f(); return nil }); err != nil {
		l.t.Fatal(err)
	}
}

// launch starts wmproxy on a host.
func (l *lab) launch(h *netlab.Host, args ...string) (p *process) {
	l.t.Helper()
	l.in(h, func() { p = launch(l.t, nil, append(args, withDebug...)...) })
	p.dial = func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = h.In(func() (err error) {
			c, err = new(net.Dialer).DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}
	return p
}

// startServer starts a server, or starts it again.
func (l *lab) startServer(i int) {
	l.t.Helper()
	addr, dir := netip.AddrPortFrom(netlab.ServerAddr(i), labPort), l.servers[i].StateDir
	l.servers[i] = serverBehind(l.t, l.launch(l.Servers[i], slices.Concat([]string{
		"server", "--listen", addr.String(), "--state-dir", dir, "--allow", netlab.TargetNetwork,
	}, labServerTimers)...))
	l.servers[i].Addr, l.servers[i].StateDir = addr, dir
}

// startClient starts the client with all servers' links, the first one preferred.
func (l *lab) startClient(args ...string) {
	l.t.Helper()
	args = slices.Concat([]string{
		"client", "--listen", labSOCKS, "--state-dir", filepath.Join(l.t.TempDir(), "client"),
	}, labClientTimers, args)
	for _, s := range l.servers {
		args = append(args, s.Link)
	}
	p := l.launch(l.Home, args...)
	p.WaitLog("listening", message("SOCKS5 is listening"))
	l.client = &socksProcess{process: p, Addr: netip.MustParseAddrPort(labSOCKS)}
}

// associate opens an association of an application at home.
func (l *lab) associate() (conn *socks.PacketConn) {
	l.t.Helper()
	l.in(l.Home, func() { conn = associate(l.t, l.client.Socks()) })
	return conn
}

// connect opens a stream of an application at home.
func (l *lab) connect(to socks.Addr) (conn *net.TCPConn) {
	l.t.Helper()
	l.in(l.Home, func() { conn = connect(l.t, l.client.Socks(), to) })
	return conn
}

// connects waits until a stream to the echo opens and carries data, and returns the time that it
// took. Like a user, it tries again if one hangs.
func (l *lab) connects(bound time.Duration) time.Duration {
	l.t.Helper()
	const again = 500 * time.Millisecond
	for began := time.Now(); ; {
		ctx, cancel := context.WithTimeout(l.t.Context(), again)
		err := l.Home.In(func() error { return connectOnce(ctx, l.client.Socks(), l.echo, func() {}) })
		if err != nil {
			<-ctx.Done() // do not repeat failures without a pause
		}
		cancel()
		took := time.Since(began)
		switch {
		case err == nil && took > bound:
			l.t.Errorf("a stream passes after %v, want %v at most", took, bound)
			return took
		case err == nil:
			return took
		case took > waitTimeout:
			l.t.Fatalf("no stream passes after %v: %v", took, err)
		}
	}
}

// rest records the resources of the processes while nothing is open, to compare with at the end.
// It uses one association and one stream first, for resources that stay after the first use.
func (l *lab) rest() {
	l.t.Helper()
	conn := l.associate()
	ping(l.t, conn, l.echo)
	l.connects(waitTimeout)
	conn.Close()
	l.before = nil
	for _, p := range l.processes() {
		rested(l.t, p)
		l.before = append(l.before, holdingsNow(l.t, p, false))
	}
}

func (l *lab) processes() (all []*process) {
	for _, s := range l.servers {
		all = append(all, s.process)
	}
	return append(all, l.client.process)
}

// settles waits until the processes have no more resources than at rest.
func (l *lab) settles() {
	l.t.Helper()
	for i, p := range l.processes() {
		before := l.before[i]
		before.Heap += 16 << 20 // grown tables and buffers
		after, took := settled(l.t, p, before, leftOverFor)
		l.t.Logf("%s before %v\nafter %v, %v later", p.name, l.before[i], after, took.Round(time.Millisecond))
	}
}

// leftOverFor bounds the time until an abandoned carrier has ended, also at the server.
const leftOverFor = 25 * time.Second

// during lets time pass in the lab, which runs in real time.
func during(d time.Duration) { time.Sleep(d) }

// kept checks that the target has seen one address and port only.
func (c *call) kept() string {
	c.t.Helper()
	egress := c.seenAs()
	if len(egress) != 1 {
		c.t.Errorf("the egress address and port changed: %v", egress)
		return fmt.Sprintf("egress %v", egress)
	}
	return fmt.Sprintf("egress %v kept", egress[0])
}
