//go:build unix

package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wmproxy/internal/probe"
	"wmproxy/internal/status"
	"wmproxy/socks"
)

// shortDir returns a state directory with a path that is short enough for a socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wmproxy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// asked runs wmproxy status and returns its output and exit code.
func asked(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(program, append([]string{"status"}, args...)...)
	cmd.Env = environment(t)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // ProcessState has the result
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func reportOf(t testing.TB, stateDir string) (r status.Report) {
	t.Helper()
	out, errs, code := asked(t, "--json", "--state-dir", stateDir)
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return r
}

// awaitReport asks for reports until ok returns true and returns the last one.
func awaitReport(t testing.TB, stateDir, what string, ok func(*status.Report) bool) status.Report {
	t.Helper()
	for end := time.Now().Add(waitTimeout); ; time.Sleep(20 * time.Millisecond) {
		r := reportOf(t, stateDir)
		if ok(&r) {
			return r
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %+v", what, r)
		}
	}
}

const pings = 20

// pinged sends this number of datagrams of 100 bytes to an echo and back.
func pinged(t testing.TB, c *socks.Client, echo socks.Addr) *socks.PacketConn {
	t.Helper()
	conn := associate(t, c)
	pinger := probe.NewPinger(conn, echo)
	for range pings {
		if _, err := pinger.Ping(100, waitTimeout); err != nil {
			t.Fatal(err)
		}
	}
	return conn
}

func TestStatusShowsBothEndsOfATunnel(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	listen := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePorts(t, 1)).String()
	s := startServerIn(t, dir+"/server", listen, append(loopbackAllowed, "--token", "alice:secret-of-alice")...)
	c := startClient(t, s.Link, "--state-dir", dir+"/client")
	echo := startEcho(t)
	assoc := pinged(t, c.Socks(), echo)
	// Dropped here: policy at the server.
	writeTo(t, assoc, []byte("x"), address("192.168.77.1:9"))
	stream := connect(t, c.Socks(), echo)
	const streamed = 200_000
	go func() { _, _ = stream.Write(make([]byte, streamed)) }()
	if _, err := io.ReadFull(stream, make([]byte, streamed)); err != nil {
		t.Fatal(err)
	}

	near := reportOf(t, dir+"/client")
	far := awaitReport(t, dir+"/server", "the refused datagram", func(r *status.Report) bool {
		return len(r.Associations) == 1 && r.Associations[0].Drops["policy"] == 1
	})

	if near.Role != "client" || near.PID != c.PID() || near.Listen != c.Addr.String() || far.Role != "server" || far.PID != s.PID() || far.Listen != listen {
		t.Errorf("the client says %s %d on %s, the server %s %d on %s", near.Role, near.PID, near.Listen, far.Role, far.PID, far.Listen)
	}
	for _, side := range []struct {
		name string
		r    status.Report
		why  string
	}{{"client", near, "preferred"}, {"server", far, "the client asks for it"}} {
		if len(side.r.Sessions) != 1 || len(side.r.Associations) != 1 || side.r.SessionsTotal != 1 || side.r.AssociationsTotal != 1 {
			t.Fatalf("%s: %+v", side.name, side.r)
		}
		session, a := side.r.Sessions[0], side.r.Associations[0]
		if session.ID != near.Sessions[0].ID || session.User != "alice" || !session.Attached || session.Associations != 1 || session.OpenStreams != 1 || len(session.Carriers) != 2 {
			t.Errorf("%s: %+v", side.name, session)
		}
		if d := session.Datagrams; d.Transport != "quic" || d.Why != side.why {
			t.Errorf("%s: datagrams %+v", side.name, d)
		}
		if st := session.Streams; st.Transport != "yamux" || st.Why != side.why {
			t.Errorf("%s: streams %+v", side.name, st)
		}
		for _, carrier := range session.Carriers {
			quic := carrier.Transport == "quic"
			if carrier.Health != "good" || carrier.ServesDatagrams != quic || carrier.ServesNewStreams == quic || carrier.RTTMillis <= 0 || carrier.RTTMillis > 5000 {
				t.Errorf("%s: %+v", side.name, carrier)
			}
			if quic && (carrier.BundlesUp < pings || carrier.BundlesDown < pings || carrier.BundleBytesUp < 100*pings || carrier.BytesUp < carrier.BundleBytesUp) {
				t.Errorf("%s: %d datagrams took %+v", side.name, pings, carrier)
			}
			if !quic && carrier.OpenStreams != 1 {
				t.Errorf("%s: %+v", side.name, carrier)
			}
			if _, err := os.Stat("/proc/self/fd"); !quic && err == nil && (carrier.BytesUp < streamed || carrier.BytesDown < streamed || carrier.PacketsUp == 0) {
				t.Errorf("%s: %d bytes each way took %+v", side.name, streamed, carrier)
			}
		}
		down := uint64(pings)
		up := down
		if side.name == "client" {
			up++ // the one that the server refuses
		}
		if a.Up.Datagrams != up || a.Down.Datagrams != down || a.Down.Bytes != 100*pings || a.AgeSeconds <= 0 || a.Flow == 0 {
			t.Errorf("%s: %+v, want %d datagrams up and %d down", side.name, a, up, down)
		}
		if len(side.r.Events) < 2 || !strings.Contains(side.r.Events[0].What, "attached to") {
			t.Errorf("%s: events %v", side.name, side.r.Events)
		}
	}
	a, b := near.Associations[0], far.Associations[0]
	if a.Flow != b.Flow || a.Session != near.Sessions[0].ID || b.User != "alice" {
		t.Errorf("the client says %+v, the server %+v", a, b)
	}
	if exit, err := netip.ParseAddrPort(b.Exit); err != nil || exit.Port() == 0 {
		t.Errorf("the exit is %q", b.Exit)
	}
	if from, err := netip.ParseAddrPort(a.Client); err != nil || from.Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("the client is %q", a.Client)
	}

	text, _, code := asked(t, "--state-dir", dir+"/client")
	for _, want := range []string{"client ", "session " + near.Sessions[0].ID + " with " + listen + " as alice", "datagrams over quic", "1 associations:", "events:"} {
		if code != 0 || !strings.Contains(text, want) {
			t.Errorf("exit code %d, no %q in\n%s", code, want, text)
		}
	}
	for _, args := range [][]string{{"--state-dir", dir + "/client"}, {"--json", "--state-dir", dir + "/client"}, {"--json", "--state-dir", dir + "/server"}} {
		if out, errs, _ := asked(t, args...); strings.Contains(out+errs, "secret-of-alice") {
			t.Errorf("%q: a secret", args)
		}
	}
}

func TestStatusShowsProxyAssociationOnce(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	p := startProxy(t, "--state-dir", dir, "--user", "app", "--pass", "password-of-app")
	client := p.Socks()
	client.Username, client.Password = "app", "password-of-app"
	writeTo(t, pinged(t, client, startEcho(t)), []byte("x"), address("192.168.77.1:9"))
	r := awaitReport(t, dir, "the refused datagram", func(r *status.Report) bool {
		return len(r.Associations) == 1 && r.Associations[0].Drops["policy"] == 1
	})
	a := r.Associations[0]
	if r.Role != "proxy" || len(r.Sessions) != 0 || a.User != "app" || a.Client == "" || a.Exit == "" || a.Up.Datagrams != pings+1 || a.Down.Datagrams != pings {
		t.Errorf("%+v", r)
	}
}

func TestStatusShowsCarrierOfDatagrams(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	f, c := startThrough(t, "--state-dir", dir, "--suspect", "500ms")
	conn := associate(t, c.Socks())
	echo := startEcho(t)
	ping(t, conn, echo)
	f.cutUDP(true)
	r := awaitReport(t, dir, "datagrams over yamux", func(r *status.Report) bool {
		_, _ = conn.WriteToAddr([]byte("x"), echo)
		return r.Sessions[0].Datagrams.Transport == "yamux"
	})
	session := r.Sessions[0]
	if !strings.HasPrefix(session.Datagrams.Why, "quic ") {
		t.Errorf("the reason is %q", session.Datagrams.Why)
	}
	for _, carrier := range session.Carriers {
		if carrier.Transport == "quic" && (carrier.Health != "suspect" || !strings.Contains(carrier.Reason, "silent")) {
			t.Errorf("%+v", carrier)
		}
	}
	said := false
	for _, e := range r.Events {
		said = said || strings.Contains(e.What, "datagrams moved to yamux")
	}
	if !said {
		t.Errorf("the events are %v", r.Events)
	}
}

func TestStatusSocketIsPrivateAndRemoved(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	start := func() *socksProcess { return startProxy(t, "--state-dir", dir) }
	refused := func() {
		t.Helper()
		out, errs, code := asked(t, "--state-dir", dir)
		if code != 1 || out != "" || !strings.Contains(errs, "nothing that runs has its state in "+dir) {
			t.Errorf("exit code %d, %q, %q", code, out, errs)
		}
	}
	refused()
	p := start()
	path := filepath.Join(dir, status.SocketName)
	if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	p.Kill()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("nothing is left of a process that was killed: %v", err)
	}
	refused() // a socket without its process
	p = start()
	if r := reportOf(t, dir); r.PID != p.PID() {
		t.Errorf("process %d answers, want %d", r.PID, p.PID())
	}
	p.Stop()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket outlives its process")
	}
	refused()
}

func TestTooLongSocketPathIsAWarning(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(shortDir(t), strings.Repeat("d", 120))
	p := startProxy(t, "--state-dir", dir)
	line := p.WaitLog("the warning", containing("choose a shorter --state-dir"))
	if line.Level != "WARN" {
		t.Errorf("it is %s", line.Level)
	}
	ping(t, associate(t, p.Socks()), startEcho(t))
	if _, errs, code := asked(t, "--state-dir", dir); code != 1 || !strings.Contains(errs, "choose a shorter --state-dir") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}

func TestStatusSocketSurvivesHostileUse(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	p := startProxy(t, "--state-dir", dir, "--debug", "127.0.0.1:0")
	conn := associate(t, p.Socks())
	echo := startEcho(t)
	ping(t, conn, echo)
	reportOf(t, dir)
	before := holdingsNow(t, p.process, false)
	path := filepath.Join(dir, status.SocketName)
	for _, assault := range []struct {
		name string
		do   func(net.Conn)
	}{
		{"garbage", func(c net.Conn) { _, _ = c.Write(garbage(64 << 10)) }},
		{"no reading", func(net.Conn) {}},
		{"a request", func(c net.Conn) { _, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") }},
		{"hanging up", func(c net.Conn) { c.Close() }},
	} {
		for range 50 {
			c, err := net.DialTimeout("unix", path, waitTimeout)
			if err != nil {
				t.Fatalf("%s: %v", assault.name, err)
			}
			t.Cleanup(func() { c.Close() })
			_ = c.SetDeadline(time.Now().Add(time.Second))
			assault.do(c)
		}
		if r := reportOf(t, dir); r.PID != p.PID() {
			t.Errorf("%s: %+v", assault.name, r)
		}
		ping(t, conn, echo)
	}
	settled(t, p.process, before, waitTimeout)
}
