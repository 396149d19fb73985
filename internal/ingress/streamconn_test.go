package ingress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/tunnel/carrier"
)

// blockedStream is a stream whose Read and Write block until a deadline passes or it is reset. It
// notices a second reader or writer, which a stream must not have.
type blockedStream struct {
	carrier.Stream
	reset             chan struct{}
	deadline          chan struct{}
	readers, writers  atomic.Int32
	twice, closeWrite atomic.Bool
	code              carrier.ErrorCode
}

func newBlockedStream() *blockedStream {
	return &blockedStream{reset: make(chan struct{}), deadline: make(chan struct{})}
}

func (s *blockedStream) block(n *atomic.Int32) (int, error) {
	if n.Add(1) > 1 {
		s.twice.Store(true)
	}
	defer n.Add(-1)
	select {
	case <-s.reset:
		return 0, &carrier.ResetError{Code: s.code}
	case <-s.deadline:
		for range 1000 { // long enough to be seen by another
			runtime.Gosched()
		}
		return 0, context.DeadlineExceeded
	}
}

func (s *blockedStream) Read([]byte) (int, error)  { return s.block(&s.readers) }
func (s *blockedStream) Write([]byte) (int, error) { return s.block(&s.writers) }
func (s *blockedStream) CloseWrite() error         { s.closeWrite.Store(true); return nil }

func (s *blockedStream) SetDeadline(t time.Time) error {
	if t.Equal(carrier.LongAgo) {
		close(s.deadline)
	}
	return nil
}

func (s *blockedStream) Reset(code carrier.ErrorCode) {
	select {
	case <-s.reset:
	default:
		s.code = code
		close(s.reset)
	}
}

func TestCloseWaitsForTheReaderBeforeItDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := newBlockedStream(), new(streamConn)
		c.start(s, netip.AddrPort{})
		read := make(chan error)
		go func() { _, err := io.Copy(io.Discard, c); read <- err }()
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err == nil {
			t.Error("Read returned no error after Close")
		}
		<-s.reset
		if s.twice.Load() || !s.closeWrite.Load() || s.code != carrier.CodeNone {
			t.Errorf("two readers: %v, half closed: %v, code %d; want false, true, 0", s.twice.Load(), s.closeWrite.Load(), s.code)
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the second Close returned %v", err)
		}
	})
}

func TestCloseDuringAWriteResetsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := newBlockedStream(), new(streamConn)
		c.start(s, netip.AddrPort{})
		written := make(chan error)
		go func() { _, err := c.Write([]byte("x")); written <- err }()
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-written; err == nil {
			t.Error("Write returned no error after Close")
		}
		if s.closeWrite.Load() || s.code != carrier.CodeConnectionReset {
			t.Errorf("half closed: %v, code %d; want false, %d", s.closeWrite.Load(), s.code, carrier.CodeConnectionReset)
		}
	})
}

func TestClosedStreamCanBeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := newBlockedStream(), new(streamConn)
		c.start(s, netip.AddrPort{})
		_ = c.Close()
		c.giveUp()
		select {
		case <-s.reset:
		default:
			t.Error("giving up did not reset the stream")
		}
	})
}
