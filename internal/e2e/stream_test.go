package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wmproxy/internal/testmain"
	"wmproxy/socks"
)

// random returns n pseudo-random bytes that depend on the seed.
func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// listenTCP opens a target's listener, which is closed after the test.
func listenTCP(t testing.TB, addr string) *net.TCPListener {
	t.Helper()
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// stream opens a stream to a target and returns both of its ends.
func stream(t testing.TB, c *socks.Client) (app, target *net.TCPConn) {
	t.Helper()
	ln := listenTCP(t, "127.0.0.1:0")
	app = connect(t, c, socks.AddrFrom(ln.Addr().(*net.TCPAddr).AddrPort()))
	target, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	for _, conn := range []*net.TCPConn{app, target} {
		_ = conn.SetDeadline(time.Now().Add(2 * waitTimeout))
	}
	return app, target
}

// pour writes b in the background and sends the error of the write or of finish.
func pour(conn *net.TCPConn, b []byte, finish func() error) <-chan error {
	result := make(chan error, 1)
	go func() {
		_, err := conn.Write(b)
		if err == nil {
			err = finish()
		}
		result <- err
	}()
	return result
}

// drained reads until the end and compares the data.
func drained(t testing.TB, what string, conn *net.TCPConn, want []byte) {
	t.Helper()
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("%s: %v after %d of %d bytes", what, err, len(got), len(want))
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes arrived that are not the %d that were sent", what, len(got), len(want))
	}
}

const tail = 8 << 20 // bytes that are under way when one side ends its half

func TestHalvesOfAStreamCloseSeparately(t *testing.T) {
	t.Parallel()
	overEach(t, everyKind, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		for _, first := range []string{"application", "target"} {
			one, two := stream(t, tu.Entry.Socks())
			if first == "target" {
				one, two = two, one
			}
			question, answer := random(1, tail), random(2, tail)
			asked := pour(one, question, one.CloseWrite)
			drained(t, "until the "+first+" was done", two, question)
			answered := pour(two, answer, two.CloseWrite)
			drained(t, "after the "+first+" was done", one, answer)
			for _, c := range []<-chan error{asked, answered} {
				if err := <-c; err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func TestCloseCutsNoDataOff(t *testing.T) {
	t.Parallel()
	overEach(t, everyKind, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		for i := range 4 {
			app, target := stream(t, tu.Entry.Socks())
			from, to, name := target, app, "target"
			if i%2 == 1 {
				from, to, name = app, target, "application"
			}
			want := random(byte(i), tail)
			closed := pour(from, want, from.Close)
			drained(t, "from a "+name+" that closed", to, want)
			if err := <-closed; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestResetReachesTheOtherEnd(t *testing.T) {
	t.Parallel()
	overEach(t, everyKind, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		for _, who := range []string{"application", "target"} {
			from, to := stream(t, tu.Entry.Socks())
			if who == "target" {
				from, to = to, from
			}
			if _, err := from.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if err := from.SetLinger(0); err != nil {
				t.Fatal(err)
			}
			from.Close()
			if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("after the %s reset, the other end got %v", who, err)
			}
		}
	})
}

func TestSlowReaderBlocksSenderWithoutMemory(t *testing.T) {
	t.Parallel()
	const offered = 200 << 20
	// The kernels' buffers and the tunnel's windows. The race detector needs
	// several times the memory.
	const mostTaken = 64 << 20
	mostGrown := 24 << 20
	if testmain.Race {
		mostGrown = 160 << 20
	}
	overEach(t, []string{overQUIC, overYamux, overProxy}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		processes := map[string]*process{"entrance": tu.Entry.process, "exit": tu.Exit()}
		before := map[string]int{}
		for name, p := range processes {
			before[name] = peakMemory(t, p)
		}
		for _, reader := range []string{"application", "target"} {
			slow, from := stream(t, tu.Entry.Socks())
			if reader == "target" {
				slow, from = from, slow
			}
			taken, sum := offer(t, from, offered)
			if taken > mostTaken {
				t.Errorf("%d MB went to a %s that does not read", taken>>20, reader)
			}
			for name, p := range processes {
				if grown := peakMemory(t, p) - before[name]; grown > mostGrown {
					t.Errorf("the %s grew by %d MB for a %s that does not read", name, grown>>20, reader)
				} else {
					t.Logf("%s that does not read: %d MB taken, the %s grew by %d MB", reader, taken>>20, name, grown>>20)
				}
			}
			if err := from.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got := sha256.New()
			if n, err := io.Copy(got, slow); err != nil || n != taken {
				t.Errorf("the %s then read %d bytes of %d: %v", reader, n, taken, err)
			}
			if !bytes.Equal(got.Sum(nil), sum) {
				t.Error("what arrived is not what was sent")
			}
			slow.Close()
			from.Close()
		}
	})
}

// offer writes random bytes until n are written or none has been for a while, and returns their
// number and SHA-256.
func offer(t testing.TB, conn *net.TCPConn, n int64) (taken int64, sum []byte) {
	t.Helper()
	const stalled = 700 * time.Millisecond
	buf, hash := random(7, 1<<20), sha256.New()
	for taken < n {
		_ = conn.SetWriteDeadline(time.Now().Add(stalled))
		m, err := conn.Write(buf)
		taken += int64(m)
		hash.Write(buf[:m])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return taken, hash.Sum(nil)
}

// peakMemory returns the peak of a process's resident memory, in bytes.
func peakMemory(t testing.TB, p *process) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		unable(t, "there is no /proc to read the memory of a process from")
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("the peak is not in the process's status")
	return 0
}

func TestReplyTellsOutcomeOfDial(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux, overProxy}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, []string{"--allow", "255.255.255.255/32"}, nil)
		closed := listenTCP(t, "127.0.0.1:0")
		refused := socks.AddrFrom(closed.Addr().(*net.TCPAddr).AddrPort())
		closed.Close()
		for _, test := range []struct {
			name string
			dst  socks.Addr
			want byte
		}{
			{"a closed port", refused, socks.ReplyConnectionRefused},
			{"a private address", address("10.11.12.13:80"), socks.ReplyNotAllowed},
			{"a link-local address", address("169.254.169.254:80"), socks.ReplyNotAllowed},
			{"a mapped private address", address("[::ffff:10.11.12.13]:80"), socks.ReplyNotAllowed},
			{"multicast", address("224.0.0.1:80"), socks.ReplyNotAllowed},
			// Linux refuses TCP to the broadcast address, also without a route.
			{"the broadcast address", address("255.255.255.255:80"), socks.ReplyNetworkUnreachable},
			// The name is not valid, so that no DNS server is asked.
			{"a name that is none", socks.Addr{Name: "no..name", Port: 80}, socks.ReplyHostUnreachable},
		} {
			if got := replyTo(t, tu.Entry.Socks(), test.dst); got != test.want {
				t.Errorf("%s: reply %d, want %d", test.name, got, test.want)
			}
		}
	})
}

func TestServersOwnPortIsNeverAllowed(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	c := startClient(t, s.Link)
	if got := replyTo(t, c.Socks(), socks.AddrFrom(s.Addr)); got != socks.ReplyNotAllowed {
		t.Errorf("reply %d, want %d", got, socks.ReplyNotAllowed)
	}
}

func TestLoopbackIsRefusedUnlessAllowed(t *testing.T) {
	t.Parallel()
	s := startServerIn(t, t.TempDir()+"/server", fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)), "--allow", "127.0.0.2")
	c := startClient(t, s.Link)
	open, closed := startEchoAt(t, "127.0.0.2:0"), startEcho(t)
	for _, dst := range []socks.Addr{closed, {Name: "localhost", Port: closed.Port}} {
		if got := replyTo(t, c.Socks(), dst); got != socks.ReplyNotAllowed {
			t.Errorf("%v: reply %d, want %d", dst, got, socks.ReplyNotAllowed)
		}
	}
	// Refused datagrams are dropped and counted, and the association goes on.
	conn := associate(t, c.Socks())
	writeTo(t, conn, []byte("one"), closed)
	writeTo(t, conn, []byte("two"), closed)
	ping(t, conn, open)
	conn.Close()
	line := s.WaitLog("the flow's end", message("flow ended"))
	if n := line.Int("drops", "policy"); n != 2 {
		t.Errorf("%d datagrams are counted as refused by policy, want 2: %s", n, line.Raw)
	}
}

// address parses a destination.
func address(s string) socks.Addr { return socks.AddrFrom(netip.MustParseAddrPort(s)) }

// replyTo requests a stream to dst and returns the reply's code.
func replyTo(t testing.TB, c *socks.Client, dst socks.Addr) byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	conn, err := c.Connect(ctx, dst)
	if err == nil {
		conn.Close()
		return socks.ReplySucceeded
	}
	var reply *socks.ReplyError
	if !errors.As(err, &reply) {
		t.Fatalf("%v: %v", dst, err)
	}
	return reply.Code
}
