package bench

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"wmproxy/internal/udpio"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

func listenEcho(t *testing.T) *Echo {
	t.Helper()
	e, err := ListenEcho(loopback, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func dialEcho(t *testing.T, e *Echo) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(e.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dialLoad opens a stream and sends the preface of the mode.
func dialLoad(t *testing.T, e *Echo, mode byte) *net.TCPConn {
	t.Helper()
	c := dialEcho(t, e)
	if err := greet(c, mode); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOtherStreamsAreEchoed(t *testing.T) {
	e := listenEcho(t)
	for _, text := range []string{
		"", "x", "hello, world", preface[:5], preface, preface + "X", preface + "?more", "wmproxy-bunch/2U and so on",
	} {
		c := dialEcho(t, e)
		for i := range len(text) { // byte by byte, as it may arrive
			if _, err := c.Write([]byte{text[i]}); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != text {
			t.Errorf("%q came back as %q, %v", text, got, err)
		}
	}
}

func TestDatagramsOfAnySizeAreEchoed(t *testing.T) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(listenEcho(t).Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 1<<16)
	for _, size := range []int{0, 1, 1472, 9000, udpio.MaxDatagram} {
		sent := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := conn.Write(sent); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf); err != nil || !bytes.Equal(buf[:n], sent) {
			t.Errorf("%d bytes: %d came back, %v", size, n, err)
		}
	}
}

func TestPortInUseForTCPIsAnError(t *testing.T) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(loopback))
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if e, err := ListenEcho(tcp.Addr().(*net.TCPAddr).AddrPort(), false); err == nil {
		e.Close()
		t.Error("the echo listens on UDP alone")
	}
}

func TestSinkReportsItsTotal(t *testing.T) {
	c := dialLoad(t, listenEcho(t), modeUp)
	const total = 3_000_001
	if _, err := c.Write(make([]byte, total)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || len(got) < totalLen || len(got)%totalLen != 0 {
		t.Fatalf("%d bytes of totals, %v", len(got), err)
	}
	if last := binary.BigEndian.Uint64(got[len(got)-totalLen:]); last != total {
		t.Errorf("total %d, want %d", last, total)
	}
}

func TestSourceSendsUntilTheEnd(t *testing.T) {
	c := dialLoad(t, listenEcho(t), modeDown)
	if n, err := io.CopyN(io.Discard, c, 10<<20); err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

func TestDiscardCountsAllBytes(t *testing.T) {
	c := dialEcho(t, listenEcho(t))
	const total = 100_003
	var writer sync.WaitGroup
	defer writer.Wait()
	writer.Go(func() {
		_, _ = c.Write(make([]byte, total))
		_ = c.CloseWrite()
	})
	d := newDiscarder(c)
	got := 0
	for {
		n, err := d.discard()
		got += n
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got != total {
		t.Errorf("%d of %d bytes", got, total)
	}
}

func TestCloseOfEchoEndsItsConnections(t *testing.T) {
	e, err := ListenEcho(loopback, false)
	if err != nil {
		t.Fatal(err)
	}
	c := dialLoad(t, e, modeDown)
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err == nil {
		return // a clean end
	}
}
