package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"wmproxy/internal/testmain"
	"wmproxy/socks"
)

// A user must not take the descriptors of others.

const (
	// hogInUse is the number of the hog's flows or streams in use, fewer than its share.
	hogInUse = 20

	// untilIdle is the time without use after which the other flows count as idle.
	untilIdle = 2500 * time.Millisecond
)

// fewDescriptors returns the usual limit of a process, or less with the race detector, because to
// fill 1,024 would take longer than an unused descriptor counts as in use.
func fewDescriptors() int {
	if testmain.Race {
		return 256
	}
	return 1024
}

// sharedOut returns the number of descriptors that users share of a process's limit.
func sharedOut(limit int) int { return limit - max(64, limit/8) }

// servedWithin bounds the wait of a user below its share.
func servedWithin() time.Duration { return time.Second * time.Duration(raceFactor()) }

// twoUsers are a server's arguments for a hog and an honest user.
var twoUsers = slices.Concat(withoutHold, []string{"--token", "hog:hog-secret", "--token", "bob:bob-secret"})

func asUser(name string, attach uint64) wireHello {
	return wireHello{user: name, token: name + "-secret", attach: attach, withSecret: true}
}

// launchWithin is like launch with a limit of descriptors.
func launchWithin(t testing.TB, limit int, args ...string) *process {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		unable(t, "there is no sh to set a limit in")
	}
	cmd := exec.Command(sh, append([]string{"-c", "ulimit -n " + strconv.Itoa(limit) + ` && exec "$0" "$@"`, program}, args...)...)
	return launchCommand(t, nil, cmd, args)
}

// manyFlows is a speaker with many flows to one echo.
type manyFlows struct {
	*speaker
	echo socks.Addr

	mu    sync.Mutex
	round int             // of fill
	back  map[uint64]bool // flows with an answer in this round
}

func startFlows(sp *speaker, echo socks.Addr) *manyFlows {
	m := &manyFlows{speaker: sp, echo: echo, back: make(map[uint64]bool)}
	var reading sync.WaitGroup
	sp.t.Cleanup(func() { sp.hangUp(); reading.Wait() })
	reading.Go(func() {
		for {
			b, err := sp.receive()
			if err != nil {
				return
			}
			for _, body := range records(sp.t, b) {
				var round int
				var flow uint64
				if _, err := fmt.Sscanf(string(body[7:]), "round %d flow %d", &round, &flow); err != nil {
					continue
				}
				m.mu.Lock()
				if round == m.round {
					m.back[flow] = true
				}
				m.mu.Unlock()
			}
		}
	})
	return m
}

// send sends a datagram on each of the flows first to last.
func (m *manyFlows) send(first, last uint64) {
	m.t.Helper()
	const perBundle = 20
	for ; first <= last; first += perBundle {
		var b []byte
		for flow := first; flow < first+perBundle && flow <= last; flow++ {
			b = append(b, wireRecord(2*flow, datagram(m.echo.AddrPort(), fmt.Appendf(nil, "round %d flow %d", m.round, flow)))...)
		}
		if err := m.speaker.send(b); err != nil {
			m.t.Fatal(err)
		}
	}
}

// fill sends on the flows until no more of them are answered for a while, and returns the number
// of those that were.
func (m *manyFlows) fill(first, last uint64) (n int) {
	m.t.Helper()
	m.mu.Lock()
	m.round++
	m.back = make(map[uint64]bool)
	m.mu.Unlock()
	for grew := time.Now(); time.Since(grew) < servedWithin() && n < int(last-first+1); {
		m.send(first, last)
		m.answers(last)
		time.Sleep(50 * time.Millisecond) // for outstanding datagrams
		m.mu.Lock()
		if len(m.back) > n {
			n, grew = len(m.back), time.Now()
		}
		m.mu.Unlock()
	}
	return n
}

// inUse calls use, which waits for an answer, again and again until all other flows and
// streams have become idle.
func inUse(use func()) {
	use() // everything sent before has arrived, too
	for began := time.Now(); time.Since(began) < untilIdle; time.Sleep(100 * time.Millisecond) {
		use()
	}
}

// mustServe attaches as bob and opens a flow and a stream, each in time.
func mustServe(t *testing.T, srv *serverProcess, echo socks.Addr) *manyFlows {
	t.Helper()
	began := time.Now()
	took := func(what string) {
		t.Helper()
		d := time.Since(began)
		t.Logf("%s took %v", what, d.Round(time.Microsecond))
		if d > servedWithin() {
			t.Errorf("%s took %v", what, d)
		}
		began = time.Now()
	}
	sp := attach(t, overYamux, srv, newWireSession(), asUser("bob", 1))
	took("bob's attach")
	body := datagram(echo.AddrPort(), []byte("bob"))
	sp.echoed([][]byte{wireRecord(2, body)}, body)
	took("bob's flow")
	st, err := sp.stream()
	if err != nil {
		t.Fatal(err)
	}
	sp.talk(st, echo)
	took("bob's stream")
	return startFlows(sp, echo)
}

// bobsShare opens as many flows as bob can get and checks that they are half of all.
func bobsShare(t *testing.T, srv *serverProcess, bob *manyFlows, limit int) {
	t.Helper()
	got := 1 + bob.fill(1, uint64(limit)) // and the connection
	during := holdingsNow(t, srv.process, false)
	t.Logf("bob has %d descriptors of %d; the server %d in all", got, limit, during.Descriptors)
	if got < limit/2-2 || got > limit/2+1 {
		t.Errorf("bob got %d descriptors, want %d", got, limit/2)
	}
	if during.Descriptors > fewDescriptors() {
		t.Errorf("%d descriptors are open", during.Descriptors)
	}
}

func startShared(t *testing.T, limit int) (*serverProcess, socks.Addr) {
	t.Helper()
	srv := startServerWithin(t, limit, twoUsers...)
	emptied(t, srv.process)
	return srv, startEcho(t)
}

// emptied makes the test wait at its end, before the process is stopped, until the process has
// closed everything that it opened for the test.
func emptied(t testing.TB, p *process) {
	before := holdingsNow(t, p, true).Descriptors
	t.Cleanup(func() {
		for began := time.Now(); holdingsNow(t, p, true).Descriptors > before+10; time.Sleep(50 * time.Millisecond) {
			if time.Since(began) > waitTimeout {
				t.Errorf("%s has not closed its descriptors", p.name)
				return
			}
		}
	})
}

// startEchoes starts echoes for the hog's streams, one for each 256.
func startEchoes(t testing.TB) (echoes []socks.Addr) {
	t.Helper()
	for range 1 + fewDescriptors()/256 {
		echoes = append(echoes, startEcho(t))
	}
	return echoes
}

func TestHogOfFlowsLeavesOthersTheirShare(t *testing.T) {
	t.Parallel()
	srv, echo := startShared(t, fewDescriptors())
	limit := sharedOut(fewDescriptors())
	most := limit - 1 // and its connection
	hog := startFlows(attach(t, overYamux, srv, newWireSession(), asUser("hog", 1)), echo)
	if got := hog.fill(1, uint64(limit+100)); got != most {
		t.Errorf("the hog has %d flows, want %d", got, most)
	}
	use := func() {
		t.Helper()
		if got := hog.fill(1, hogInUse); got != hogInUse {
			t.Fatalf("%d of the hog's flows in use are answered, want %d", got, hogInUse)
		}
	}
	inUse(use)
	bob := mustServe(t, srv, echo)
	bobsShare(t, srv, bob, limit)
	use()
	// A flow whose socket was taken gets another one when a descriptor is free.
	bob.hangUp()
	for began := time.Now(); ; {
		got := hog.fill(1, uint64(most))
		if got == most {
			break
		}
		if time.Since(began) > waitTimeout {
			t.Fatalf("%d of the hog's flows are back, want %d", got, most)
		}
	}
}

func TestHogLosesDescriptorsWhenTheyRunOut(t *testing.T) {
	t.Parallel()
	flows := sharedOut(fewDescriptors()) / 2
	srv, echo := startShared(t, fewDescriptors())
	hog := startFlows(attach(t, overYamux, srv, newWireSession(), asUser("hog", 1)), echo)
	if got := hog.fill(1, uint64(flows)); got != flows {
		t.Fatalf("the hog has %d flows, want %d", got, flows)
	}
	limitDescriptors(t, srv.process, 0) // although the server expects more
	use := func() {
		t.Helper()
		if got := hog.fill(1, hogInUse); got != hogInUse {
			t.Fatalf("%d of the hog's flows in use are answered, want %d", got, hogInUse)
		}
	}
	inUse(use)
	bob := mustServe(t, srv, echo)
	bobs := bob.fill(1, uint64(flows))
	t.Logf("bob has %d flows", bobs)
	if bobs < flows/2-5 || bobs > flows/2+5 {
		t.Errorf("bob has %d flows, want about %d", bobs, flows/2)
	}
	use()
}

// openStream is a stream that a speaker has opened to an echo.
type openStream struct {
	wireStream
	in io.Reader
}

// connects opens n streams, to the echoes in turn.
func (sp *speaker) connects(n int, echoes []socks.Addr) (open []openStream) {
	sp.t.Helper()
	for i := range n {
		addr := socks.AppendAddrPort(nil, echoes[i%len(echoes)].AddrPort())
		st := sp.opened(append([]byte{1, byte(len(addr))}, addr...), false)
		open = append(open, openStream{st, &chunked{r: bufio.NewReader(st)}})
	}
	return open
}

// answer returns the reply to the request.
func (a openStream) answer() (code byte, err error) {
	b := make([]byte, 2)
	if _, err := io.ReadFull(a.in, b); err != nil {
		return 0, err
	}
	_, err = io.ReadFull(a.in, make([]byte, b[1]))
	return b[0], err
}

// echo sends a byte and waits for it.
func (a openStream) echo() error {
	if err := a.SetDeadline(time.Now().Add(waitTimeout)); err != nil {
		return err
	}
	if _, err := a.Write([]byte{1, 'x'}); err != nil {
		return err
	}
	_, err := io.ReadFull(a.in, make([]byte, 1))
	return err
}

func TestHogOfStreamsLeavesOthersTheirShare(t *testing.T) {
	t.Parallel()
	srv, echo := startShared(t, fewDescriptors())
	limit := sharedOut(fewDescriptors())
	sp := attach(t, overYamux, srv, newWireSession(), asUser("hog", 1))
	var open []openStream
	refused := 0
	for _, a := range sp.connects(limit+20, startEchoes(t)) {
		switch code, err := a.answer(); {
		case err != nil:
			t.Fatal(err)
		case code == socks.ReplySucceeded:
			open = append(open, a)
		default:
			refused++
			a.Close()
		}
	}
	t.Logf("the hog has %d streams; %d were refused", len(open), refused)
	if len(open) != limit-1 {
		t.Errorf("the hog has %d streams, want %d", len(open), limit-1)
	}
	use := func() {
		for _, a := range open[:hogInUse] {
			if err := a.echo(); err != nil {
				t.Fatal(err)
			}
		}
	}
	inUse(use)
	bobsShare(t, srv, mustServe(t, srv, echo), limit)
	use()
}

func TestHogOfConnectionsLeavesOthersTheirShare(t *testing.T) {
	t.Parallel()
	limit := fewDescriptors() / 2 // otherwise the first connection is dead before the last is made
	srv, echo := startShared(t, limit)
	var open []*speaker
	for i := range sharedOut(limit) - 1 {
		open = append(open, attach(t, overYamux, srv, newWireSession(), asUser("hog", uint64(i+1))))
	}
	st := open[0].connects(1, []socks.Addr{echo})[0] // the last descriptor
	if code, err := st.answer(); code != socks.ReplySucceeded || err != nil {
		t.Fatalf("the hog's stream: reply %d, %v", code, err)
	}
	use := func() {
		if err := st.echo(); err != nil {
			t.Fatal(err)
		}
	}
	c := dialWire(t, overYamux, srv.Addr, wireALPN)
	kind, payload := c.greet(parsed(t, srv), newWireSession(), asUser("hog", 9999))
	if code, _ := refusal(payload); kind != typeRefuse || code != 7 {
		t.Errorf("one more of the hog's: message of type %d, code %d; want a REFUSE with 7", kind, code)
	}
	inUse(use)
	mustServe(t, srv, echo)
	use()
	// One of the least recently used was closed, with a code.
	closed := make(chan error, len(open))
	for _, sp := range open[1:] {
		go func() { closed <- sp.closed() }()
	}
	if code, _ := closeCode(<-closed); code != 7 {
		t.Errorf("an idle connection was closed with code %d, want 7", code)
	}
}

// from returns a SOCKS5 client that connects from a local address.
func (c *socksProcess) from(ip string) *socks.Client {
	s := c.Socks()
	s.Dialer = &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0))}
	return s
}

// startEntranceWithin starts a client or a proxy with a limit of descriptors.
func startEntranceWithin(t testing.TB, limit int, command string, args ...string) *socksProcess {
	t.Helper()
	listen := map[string]string{"client": "--listen", "proxy": "--bind"}[command]
	args = append([]string{command, listen, "127.0.0.1:0", "--state-dir", filepath.Join(t.TempDir(), command)}, args...)
	p := launchWithin(t, limit, args...)
	line := p.WaitLog("listening", message("SOCKS5 is listening"))
	return &socksProcess{process: p, Addr: netip.MustParseAddrPort(line.String("address"))}
}

func TestHogAtEntranceLeavesOthersTheirShare(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"proxy", "client"} {
		for _, what := range []string{"associations", "connects"} {
			t.Run(command+"/"+what, func(t *testing.T) {
				t.Parallel()
				echo, echoes := startEcho(t), startEchoes(t)
				var c *socksProcess
				each := map[string]int{"associations": 2, "connects": 1}[what]
				if command == "proxy" {
					each++ // the exit is in the same process
					c = startEntranceWithin(t, fewDescriptors(), command, slices.Concat(loopbackAllowed, withDebug)...)
				} else {
					c = startEntranceWithin(t, fewDescriptors(), command, append(withDebug, startServer(t).Link)...)
					c.waitUp()
				}
				emptied(t, c.process)
				most := sharedOut(fewDescriptors()) / each
				hog := hogEntrance(t, c.from("127.0.0.1"), echoes, what, most)
				inUse(func() {
					for _, use := range hog[:hogInUse] {
						if err := use(); err != nil {
							t.Fatal(err)
						}
					}
				})
				bob := c.from("127.0.0.2")
				began := time.Now()
				ping(t, associate(t, bob), echo)
				udp := time.Since(began)
				began = time.Now()
				connect(t, bob, echo)
				tcp := time.Since(began)
				t.Logf("bob's association took %v, his CONNECT %v", udp, tcp)
				if udp > servedWithin() || tcp > servedWithin() {
					t.Errorf("bob's association took %v, his CONNECT %v", udp, tcp)
				}
				bobs := 0 // without those two, which have at most five descriptors
				for ; bobs < most; bobs++ {
					if _, err := open(t, bob, echoes[bobs%len(echoes)], what); err != nil {
						break
					}
				}
				t.Logf("bob has %d %s more, the hog had %d", bobs, what, len(hog))
				if fair := most / 2; bobs < fair-5 || bobs > fair {
					t.Errorf("bob has %d %s more, want %d less a few", bobs, what, fair)
				}
				for _, use := range hog[:hogInUse] {
					if err := use(); err != nil {
						t.Errorf("the hog's, in use: %v", err)
					}
				}
				if h := holdingsNow(t, c.process, false); h.Descriptors > fewDescriptors() {
					t.Errorf("%d descriptors are open", h.Descriptors)
				}
			})
		}
	}
}

// open opens an association or a CONNECT and returns a function that uses it.
func open(t testing.TB, c *socks.Client, echo socks.Addr, what string) (use func() error, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	b := make([]byte, 100)
	if what == "associations" {
		conn, err := c.Associate(ctx)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { conn.Close() })
		to := net.UDPAddrFromAddrPort(echo.AddrPort())
		return func() error {
			for range 10 { // a datagram may be lost
				if _, err = conn.WriteTo([]byte("x"), to); err != nil {
					return err
				}
				if err = conn.SetReadDeadline(time.Now().Add(waitTimeout / 10)); err != nil {
					return err
				}
				if _, _, err = conn.ReadFrom(b); err == nil {
					return nil
				}
			}
			return err
		}, nil
	}
	conn, err := c.Connect(ctx, echo)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	return func() error {
		if err := conn.SetDeadline(time.Now().Add(waitTimeout)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			return err
		}
		_, err := conn.Read(b)
		return err
	}, nil
}

// hogEntrance opens as many as one user can get, and checks that one more is refused.
func hogEntrance(t testing.TB, c *socks.Client, echoes []socks.Addr, what string, most int) (uses []func() error) {
	t.Helper()
	for i := range most {
		use, err := open(t, c, echoes[i%len(echoes)], what)
		if err != nil {
			t.Fatalf("the hog's number %d, of %d: %v", i, most, err)
		}
		uses = append(uses, use)
	}
	if _, err := open(t, c, echoes[0], what); err == nil {
		t.Errorf("the hog has more than %d", most)
	}
	return uses
}
