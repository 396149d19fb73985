package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wmproxy/internal/bench"
	"wmproxy/internal/link"
	"wmproxy/internal/probe"
	"wmproxy/socks"
)

const (
	// waitTimeout bounds the wait for an event that must occur. Only an overloaded machine
	// takes so long.
	waitTimeout = slowdown * 20 * time.Second

	// shutdownBound bounds the time to end after SIGINT or SIGTERM, as documented.
	shutdownBound = slowdown * 2 * time.Second
)

// logLine is a line of a process's log.
type logLine struct {
	Level string
	Msg   string
	Attrs map[string]any // including time, level and msg
	Raw   string
}

// String returns the attribute's text, or "" if there is none.
func (l logLine) String(key string) string {
	switch v := l.Attrs[key].(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		return fmt.Sprint(v)
	}
}

// Int returns a number, or 0 if there is none. Several keys lead into groups.
func (l logLine) Int(keys ...string) int {
	m := l.Attrs
	for _, key := range keys[:len(keys)-1] {
		m, _ = m[key].(map[string]any)
	}
	n, _ := m[keys[len(keys)-1]].(float64)
	return int(n)
}

// output collects the output of a process. Others can wait for more.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed and replaced with each write
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(b)
	close(o.changed)
	o.changed = make(chan struct{})
	return len(b), nil
}

// read returns the output so far and a channel that is closed when there is more.
func (o *output) read() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String(), o.changed
}

func (o *output) String() string { s, _ := o.read(); return s }

// process is a running wmproxy.
type process struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	stdout *output
	stderr *output

	exited  chan struct{} // closed after Wait
	secrets []string      // must not be in a log
	killed  bool          // the test does not expect a clean end
	failing bool          // the test expects a failure

	// dial connects to a process in another network. It is nil for this network.
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// tuneVariable turns tricks of the program off (docs/TUNING.md).
const tuneVariable = "WMPROXY_TUNE"

// environment returns the environment of processes. Of the caller's own settings for wmproxy it has only tuneVariable.
func environment(t testing.TB, extra ...string) []string {
	home := t.TempDir()
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_STATE_HOME=" + home,
		tuneVariable + "=" + os.Getenv(tuneVariable),
		"GORACE=atexit_sleep_ms=0", // otherwise each process waits a second at its end
	}, extra...)
}

// launch starts wmproxy with args and cleans up after the test. env adds to the
// environment.
func launch(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	return launchCommand(t, env, exec.Command(program, args...), args)
}

// launchCommand is like launch with a command that runs wmproxy with args in the end.
func launchCommand(t testing.TB, env []string, cmd *exec.Cmd, args []string) *process {
	t.Helper()
	p := &process{
		t: t, name: args[0], cmd: cmd,
		stdout: newOutput(), stderr: newOutput(), exited: make(chan struct{}),
		secrets: secretsIn(args),
	}
	p.cmd.Env = environment(t, env...)
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", p.name, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = p.cmd.Wait() // ProcessState has the result
		close(p.exited)
	})
	t.Cleanup(func() {
		p.end()
		wg.Wait()
		p.checkLog()
		if t.Failed() {
			t.Logf("log of %s %d:\n%s", p.name, p.PID(), p.stderr)
		}
	})
	return p
}

// secretsIn returns the secrets in a command line.
func secretsIn(args []string) (secrets []string) {
	for i, arg := range args {
		if l, err := link.Parse(arg); err == nil {
			secrets = append(secrets, l.Secret)
		}
		if i == 0 {
			continue
		}
		switch args[i-1] {
		case "--pass", "-p":
			secrets = append(secrets, arg)
		case "--token":
			_, secret, _ := strings.Cut(arg, ":")
			secrets = append(secrets, secret)
		}
	}
	return secrets
}

// PID returns the process's id.
func (p *process) PID() int { return p.cmd.Process.Pid }

// running reports whether the process has not ended.
func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// end stops a process that the test has left running.
func (p *process) end() {
	switch {
	case p.running():
		p.Stop()
	case !p.killed && !p.failing && p.cmd.ProcessState.ExitCode() != 0:
		p.t.Errorf("%s ended by itself: %v", p.name, p.cmd.ProcessState)
	}
}

// checkLog fails the test if the log has a secret, a panic or a data race.
func (p *process) checkLog() {
	text := p.stderr.String()
	for _, secret := range p.secrets {
		if secret != "" && strings.Contains(text, secret) {
			p.t.Errorf("the log of %s has a secret in it", p.name)
		}
	}
	for _, bad := range []string{"WARNING: DATA RACE", "panic:", "fatal error:"} {
		if strings.Contains(text, bad) {
			p.t.Errorf("%s: %s\n%s", p.name, bad, text)
		}
	}
}

// Stop sends SIGTERM and checks that the process ends cleanly and in time.
func (p *process) Stop() { p.t.Helper(); p.StopBy(syscall.SIGTERM) }

// StopBy is like Stop with another signal. It returns the time that the process took to end.
func (p *process) StopBy(sig syscall.Signal) time.Duration {
	p.t.Helper()
	began := time.Now()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signalling %s: %v", p.name, err)
	}
	select {
	case <-p.exited:
	case <-time.After(2 * shutdownBound):
		_ = p.cmd.Process.Kill()
		<-p.exited
		p.t.Errorf("%s had to be killed %v after %v", p.name, 2*shutdownBound, sig)
		return time.Since(began)
	}
	took := time.Since(began)
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("%s ended with %v after %v, want exit code 0", p.name, p.cmd.ProcessState, sig)
	}
	if took > shutdownBound {
		p.t.Errorf("%s took %v to end after %v, want at most %v", p.name, took, sig, shutdownBound)
	}
	return took
}

// Kill kills the process.
func (p *process) Kill() {
	p.killed = true
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// WaitExit waits for the end of the process and returns its exit code.
func (p *process) WaitExit() int {
	p.t.Helper()
	p.failing = true
	select {
	case <-p.exited:
	case <-time.After(waitTimeout):
		p.t.Fatalf("%s is still running; its log:\n%s", p.name, p.stderr)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Logs returns the lines of the log so far. Lines that are not JSON, such as a fatal
// error, have Raw alone.
func (p *process) Logs() []logLine { return parseLog(p.stderr.String()) }

func parseLog(text string) (lines []logLine) {
	for raw := range strings.Lines(text) {
		if !strings.HasSuffix(raw, "\n") {
			break // half a line
		}
		l := logLine{Raw: strings.TrimSuffix(raw, "\n")}
		if json.Unmarshal([]byte(raw), &l.Attrs) == nil {
			l.Level, l.Msg = l.String("level"), l.String("msg")
		}
		lines = append(lines, l)
	}
	return lines
}

// WaitLog waits for a line for which match returns true and returns it.
func (p *process) WaitLog(what string, match func(logLine) bool) logLine {
	p.t.Helper()
	l, _ := p.WaitLogAfter(0, what, match)
	return l
}

// WaitLogAfter is like WaitLog from line number first on. next is the number of the line
// after the one that it returns.
func (p *process) WaitLogAfter(first int, what string, match func(logLine) bool) (l logLine, next int) {
	p.t.Helper()
	return p.WaitLogWithin(waitTimeout, first, what, match)
}

// WaitLogWithin is like WaitLogAfter with its own timeout.
func (p *process) WaitLogWithin(waitTimeout time.Duration, first int, what string, match func(logLine) bool) (l logLine, next int) {
	p.t.Helper()
	deadline := time.After(waitTimeout)
	for {
		text, more := p.stderr.read()
		lines := parseLog(text)
		for i := first; i < len(lines); i++ {
			if match(lines[i]) {
				return lines[i], i + 1
			}
		}
		select {
		case <-more:
		case <-p.exited:
			if text == p.stderr.String() {
				p.t.Fatalf("%s ended (%v) without a line of %s", p.name, p.cmd.ProcessState, what)
			}
		case <-deadline:
			p.t.Fatalf("%s has no line of %s after %v", p.name, what, waitTimeout)
		}
	}
}

// CountLogs returns the number of lines for which match returns true.
func (p *process) CountLogs(match func(logLine) bool) (n int) {
	for _, l := range p.Logs() {
		if match(l) {
			n++
		}
	}
	return n
}

// message returns a match for lines with this message.
func message(msg string) func(logLine) bool {
	return func(l logLine) bool { return l.Msg == msg }
}

// containing returns a match for lines that contain this text.
func containing(text string) func(logLine) bool {
	return func(l logLine) bool { return strings.Contains(l.Raw, text) }
}

// serverProcess is a running wmproxy server.
type serverProcess struct {
	*process
	Link     string // for a client
	Addr     netip.AddrPort
	StateDir string
}

// loopbackAllowed lets a server reach the tests' targets on loopback.
var loopbackAllowed = []string{"--allow", "127.0.0.0/8", "--allow", "::1"}

// startServer starts a server on a free port that may reach loopback, and waits until it
// listens. args come last.
func startServer(t testing.TB, args ...string) *serverProcess {
	t.Helper()
	listen := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1))
	return startServerIn(t, filepath.Join(t.TempDir(), "server"), listen, append(slices.Clone(loopbackAllowed), args...)...)
}

// freePorts returns the first of n consecutive ports that are free for TCP and UDP. They
// are below the range for clients, so that they are likely to stay free.
func freePorts(t testing.TB, n int) uint16 {
	t.Helper()
	for range 50 {
		first := 10000 + rand.N(uint16(20000))
		if portsFree(first, n) {
			return first
		}
	}
	t.Fatalf("no %d ports in a row are free", n)
	return 0
}

func portsFree(first uint16, n int) bool {
	for i := range n {
		addr := fmt.Sprintf("127.0.0.1:%d", int(first)+i)
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			return false
		}
		tcp.Close()
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			return false
		}
		udp.Close()
	}
	return true
}

// startServerIn starts a server with these args only.
func startServerIn(t testing.TB, stateDir, listen string, args ...string) *serverProcess {
	t.Helper()
	s := serverBehind(t, launch(t, nil, append([]string{"server", "--listen", listen, "--state-dir", stateDir}, args...)...))
	s.StateDir = stateDir
	return s
}

// serverBehind waits until the server p listens.
func serverBehind(t testing.TB, p *process) *serverProcess {
	t.Helper()
	text, ok := p.printedLink()
	if !ok {
		t.Fatalf("the server did not start:\n%s", p.stderr)
	}
	l, err := link.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	p.secrets = append(p.secrets, l.Secret)
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.Port)
	return &serverProcess{process: p, Link: text, Addr: addr}
}

// linkFile matches the path of the client's link in a server's output.
var linkFile = regexp.MustCompile(`(?m)^  (/.*client\.link)$`)

// printedLink returns the link in the file that a server has printed the path of.
func (p *process) printedLink() (string, bool) {
	deadline := time.After(waitTimeout)
	for {
		text, more := p.stdout.read()
		if m := linkFile.FindStringSubmatch(text); m != nil {
			content, err := os.ReadFile(m[1])
			return strings.TrimSpace(string(content)), err == nil
		}
		select {
		case <-more:
		case <-p.exited:
			return "", false
		case <-deadline:
			return "", false
		}
	}
}

// socksProcess is a running wmproxy client or proxy.
type socksProcess struct {
	*process
	Addr netip.AddrPort // of the SOCKS5 entrance
}

// startClient starts a client with a link and waits until the tunnel is up with all of
// its carriers. args come last.
func startClient(t testing.TB, linkText string, args ...string) *socksProcess {
	t.Helper()
	c := startClientAlone(t, linkText, args...)
	c.waitUp()
	return c
}

// startClientAlone starts a client and waits only until its SOCKS5 port is open.
func startClientAlone(t testing.TB, linkText string, args ...string) *socksProcess {
	t.Helper()
	return startEntrance(t, withState(t, append([]string{"client"}, args...)), "--listen", linkText)
}

// startProxy starts a standalone proxy that may reach loopback. args come last.
func startProxy(t testing.TB, args ...string) *socksProcess {
	t.Helper()
	return startEntrance(t, withState(t, slices.Concat([]string{"proxy"}, loopbackAllowed, args)), "--bind")
}

// withState adds a new state directory to args, unless they name one.
func withState(t testing.TB, args []string) []string {
	if slices.Contains(args, "--state-dir") {
		return args
	}
	return append(args, "--state-dir", filepath.Join(t.TempDir(), args[0]))
}

// startEntrance starts a client or a proxy, on a free port unless args name one.
func startEntrance(t testing.TB, args []string, listenFlag string, arguments ...string) *socksProcess {
	t.Helper()
	if !slices.Contains(args, listenFlag) {
		args = append(args, listenFlag, "127.0.0.1:0")
	}
	p := launch(t, nil, append(args, arguments...)...)
	line := p.WaitLog("listening", message("SOCKS5 is listening"))
	return &socksProcess{process: p, Addr: netip.MustParseAddrPort(line.String("address"))}
}

// waitUp waits until the tunnel is up with all of its carriers.
func (c *socksProcess) waitUp() {
	c.t.Helper()
	c.waitUpAfter(0)
}

// waitUpAfter is like waitUp from this line of the log on. It returns the number of the
// next one.
func (c *socksProcess) waitUpAfter(first int) int {
	c.t.Helper()
	_, next := c.WaitLogAfter(first, "the tunnel being up", func(l logLine) bool {
		return strings.HasPrefix(l.Msg, "tunnel up: ") && !strings.Contains(l.Msg, "; without ")
	})
	return next
}

// Socks returns a SOCKS5 client of the entrance.
func (c *socksProcess) Socks() *socks.Client {
	return &socks.Client{Server: c.Addr.String(), Timeout: waitTimeout}
}

// associate opens a UDP association that ends with the test.
func associate(t testing.TB, c *socks.Client) *socks.PacketConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	conn, err := c.Associate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// connect opens a stream that ends with the test.
func connect(t testing.TB, c *socks.Client, dst socks.Addr) *net.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	conn, err := c.Connect(ctx, dst)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// startEcho starts a UDP and TCP echo on loopback.
func startEcho(t testing.TB) socks.Addr {
	t.Helper()
	return startEchoAt(t, "127.0.0.1:0")
}

func startEchoAt(t testing.TB, addr string) socks.Addr {
	t.Helper()
	echo, err := bench.ListenEcho(netip.MustParseAddrPort(addr), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	return socks.AddrFrom(echo.Addr())
}

// ping sends datagrams to an echo until one comes back. It may take several while the
// tunnel is coming up.
func ping(t testing.TB, conn *socks.PacketConn, echo socks.Addr) time.Duration {
	t.Helper()
	pinger := probe.NewPinger(conn, echo)
	began := time.Now()
	for {
		rtt, err := pinger.Ping(100, 200*time.Millisecond)
		if err == nil {
			return rtt
		}
		if !errors.Is(err, probe.ErrNoReply) || time.Since(began) > waitTimeout {
			t.Fatalf("after %v: %v", time.Since(began), err)
		}
	}
}

// tunnelled is a server and a client with a kind of tunnel between them, or a proxy, which
// has none.
type tunnelled struct {
	Server *serverProcess // nil for the proxy
	Entry  *socksProcess
}

// Exit returns the process with the sockets that targets see.
func (tu tunnelled) Exit() *process {
	if tu.Server != nil {
		return tu.Server.process
	}
	return tu.Entry.process
}

// Kinds of tunnel.
const (
	overQUIC  = "quic"
	overYamux = "yamux"
	overBoth  = "auto"
	overProxy = "proxy"
)

// startOver starts the processes of a kind. exit has flags for the side of the exit, and
// entrance for that of the entrance.
func startOver(t testing.TB, kind string, exit, entrance []string) tunnelled {
	t.Helper()
	if kind == overProxy {
		return tunnelled{Entry: startProxy(t, slices.Concat(exit, entrance)...)}
	}
	s := startServer(t, exit...)
	return tunnelled{s, startClient(t, s.Link, slices.Concat([]string{"--transport", kind}, entrance)...)}
}

// overEach runs a test over each kind of tunnel.
func overEach(t *testing.T, kinds []string, test func(t *testing.T, kind string)) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) { test(t, kind) })
	}
}
