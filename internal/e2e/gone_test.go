//go:build linux

package e2e

import (
	"errors"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"

	"wmproxy/internal/status"
)

// goneStreams is the number of streams that are left behind at a time.
const goneStreams = 20

// One end of each stream ends its half and exits, so that its kernel sends a reset. The other end neither sends nor
// receives anything.
func TestHalfClosedStreamsOfDeadAppsAreReset(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux}, func(t *testing.T, kind string) {
		t.Parallel()
		dir := shortDir(t)
		s := startServerIn(t, dir+"/server", "127.0.0.1:0", slices.Concat(loopbackAllowed, withDebug)...)
		c := startClient(t, s.Link, append([]string{"--transport", kind, "--state-dir", dir + "/client"}, withDebug...)...)
		processes := []*process{s.process, c.process}
		for _, gone := range []string{"application", "target"} {
			var before []holdings
			for _, p := range processes {
				before = append(before, holdingsNow(t, p, true))
			}
			leaving, left := make([]*net.TCPConn, goneStreams), make([]*net.TCPConn, goneStreams)
			for i := range leaving {
				leaving[i], left[i] = stream(t, c.Socks())
				if gone == "target" {
					leaving[i], left[i] = left[i], leaving[i]
				}
				if err := leaving[i].CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if _, err := left[i].Read(make([]byte, 1)); err != io.EOF {
					t.Fatalf("the end of a half came as %v", err)
				}
			}
			awaitStreams(t, dir, goneStreams)
			for _, conn := range leaving {
				_ = conn.SetLinger(0)
				conn.Close()
			}
			awaitStreams(t, dir, 0)
			for _, conn := range left {
				if _, err := conn.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("with the %s gone the other end writes: %v, want a reset", gone, err)
				}
				conn.Close()
			}
			for i, p := range processes {
				before[i].Heap += 16 << 20 // grown buffers
				settled(t, p, before[i], waitTimeout)
			}
		}
	})
}

// The application is killed while its stream is blocked, because the target does not read.
func TestStalledStreamOfDeadAppIsReset(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux}, func(t *testing.T, kind string) {
		t.Parallel()
		dir := shortDir(t)
		s := startServerIn(t, dir+"/server", "127.0.0.1:0", loopbackAllowed...)
		c := startClient(t, s.Link, "--transport", kind, "--state-dir", dir+"/client")
		app, _ := stream(t, c.Socks())
		offer(t, app, 200<<20)
		awaitStreams(t, dir, 1)
		_ = app.SetLinger(0)
		app.Close()
		awaitStreams(t, dir, 0)
	})
}

// awaitStreams waits until both ends have this number of streams open.
func awaitStreams(t *testing.T, dir string, want int) {
	t.Helper()
	for _, end := range []string{"/client", "/server"} {
		awaitReport(t, dir+end, "the streams of"+end, func(r *status.Report) bool {
			return len(r.Sessions) == 1 && r.Sessions[0].OpenStreams == want
		})
	}
}
