package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wmproxy/tunnel/carrier"
)

func TestHalfClosedStreamOfDeadAppIsReset(t *testing.T) {
	for _, test := range []struct {
		name string
		gone func(t *testing.T, app *net.TCPConn)
		want syscall.Errno
	}{
		{"it is killed", func(t *testing.T, app *net.TCPConn) {
			app.SetLinger(0)
			app.Close()
		}, syscall.EPIPE}, // the kernel's error for a reset after the end of a half
		{"keep-alive fails", func(t *testing.T, app *net.TCPConn) {
			setOption(t, app, unix.TCP_LINGER2, 1) // its kernel drops the connection after a second
			app.Close()
		}, syscall.EPIPE},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			if err := b.conn.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 3}); err != nil {
				t.Fatal(err)
			}
			b.app.CloseWrite()
			if _, err := io.ReadAll(b.far); err != nil {
				t.Fatalf("the end arrived as %v", err)
			}
			test.gone(t, b.app)
			if r := b.end(t); !errors.Is(r.Err, test.want) {
				t.Errorf("ended with %v, want %v", r.Err, test.want)
			}
			if code := <-b.near.resets; code != carrier.CodeConnectionReset {
				t.Errorf("the stream was reset with code %d, want %d", code, carrier.CodeConnectionReset)
			}
		})
	}
}

func TestStalledStreamOfDeadAppIsReset(t *testing.T) {
	b := newFixture(t)
	if _, err := b.app.Write(make([]byte, 1<<20)); err != nil { // more than one read takes; nothing reads the stream
		t.Fatal(err)
	}
	b.app.SetLinger(0)
	b.app.Close()
	if r := b.end(t); !errors.Is(r.Err, syscall.ECONNRESET) {
		t.Errorf("ended with %v, want %v", r.Err, syscall.ECONNRESET)
	}
}

// If an application has sent everything and closed, its kernel resets the connection once the target answers.
func TestTailOfClosedAppIsDelivered(t *testing.T) {
	b := newFixture(t)
	want := random(40 << 10) // fits in the kernel's buffers
	if _, err := b.app.Write(want); err != nil {
		t.Fatal(err)
	}
	b.app.Close()
	if _, err := b.far.Write([]byte("an early answer")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(drainTime / 4) // the tail is still under way when the reset comes
	got, err := io.ReadAll(b.far)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d arrived, %v", len(got), len(want), err)
	}
	if r := b.end(t); !errors.Is(r.Err, syscall.EPIPE) {
		t.Errorf("ended with %v, want %v", r.Err, syscall.EPIPE)
	}
}

func TestStalledEndOfBothHalvesIsNoError(t *testing.T) {
	b := newFixture(t)
	want := random(1 << 20)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		b.app.Write(want)
		b.app.CloseWrite()
	})
	b.far.CloseWrite()
	if _, err := b.app.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	time.Sleep(drainTime + drainTime/4)
	got, err := io.ReadAll(b.far)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d arrived, %v", len(got), len(want), err)
	}
	if r := b.end(t); r.Err != nil {
		t.Errorf("ended with %v", r.Err)
	}
}

func setOption(t *testing.T, c *net.TCPConn, option, value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, value) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}
