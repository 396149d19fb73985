package tcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slowConn takes writes one at a time, when it is told to.
type slowConn struct {
	net.Conn
	gate   chan struct{}
	closed chan struct{}
	once   sync.Once
	writes [][]byte
	err    error
}

func newSlowConn() *slowConn {
	return &slowConn{gate: make(chan struct{}), closed: make(chan struct{})}
}

// newSlowCoalescer is a coalescer over a slowConn, without TLS.
func newSlowCoalescer() (*coalescer, *slowConn) {
	conn := newSlowConn()
	records := &recordConn{Conn: conn}
	return newCoalescer(records, records, conn), conn
}

func (c *slowConn) Write(p []byte) (int, error) {
	select {
	case <-c.gate:
	case <-c.closed:
		return 0, net.ErrClosed
	}
	if c.err != nil {
		return 0, c.err
	}
	c.writes = append(c.writes, bytes.Clone(p))
	return len(p), nil
}

func (c *slowConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func TestWritesDuringAWriteGoOutTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, conn := newSlowCoalescer()
		c.Write([]byte("first"))
		synctest.Wait() // it is under way
		for range 100 {
			c.Write([]byte("ab"))
		}
		conn.gate <- struct{}{}
		conn.gate <- struct{}{}
		c.Close()
		if len(conn.writes) != 2 || string(conn.writes[0]) != "first" || !bytes.Equal(conn.writes[1], bytes.Repeat([]byte("ab"), 100)) {
			t.Errorf("%d writes", len(conn.writes))
		}
	})
}

// writeInPieces writes n bytes, of which none is large enough to be written at once.
func writeInPieces(c *coalescer, n int) (written int, err error) {
	for written < n && err == nil {
		var k int
		k, err = c.Write(make([]byte, min(n-written, coalesceQuiet/2)))
		written += k
	}
	return written, err
}

func TestALargeWriteGoesOutAtOnceBehindWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, conn := newSlowCoalescer()
		c.Write([]byte("first"))
		synctest.Wait() // it is under way
		head := make([]byte, yamuxHead)
		binary.BigEndian.PutUint32(head[8:], maxFrame)
		body := bytes.Repeat([]byte("b"), maxFrame)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, p := range [][]byte{head, body, []byte("behind")} {
				if n, err := c.Write(p); n != len(p) || err != nil {
					t.Errorf("%d of %d, %v", n, len(p), err)
				}
			}
		}()
		synctest.Wait()
		if held := len(c.buf); held != yamuxHead {
			t.Errorf("%d bytes wait, want the head alone", held)
		}
		for range 3 {
			conn.gate <- struct{}{}
			synctest.Wait()
		}
		<-done
		c.Close()
		want := [][]byte{[]byte("first"), append(head, body...), []byte("behind")}
		if len(conn.writes) != len(want) {
			t.Fatalf("%d writes, want %d", len(conn.writes), len(want))
		}
		for i := range want {
			if !bytes.Equal(conn.writes[i], want[i]) {
				t.Errorf("write %d has %d bytes, want %d", i, len(conn.writes[i]), len(want[i]))
			}
		}
	})
}

func TestTheHeadOfAFrameWaitsForItsContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, conn := newSlowCoalescer()
		head := make([]byte, yamuxHead)
		head[11] = 7
		c.Write(head)
		synctest.Wait()
		if c.writing {
			t.Error("it leaves alone")
		}
		c.Write([]byte("content"))
		conn.gate <- struct{}{}
		head[1] = 1 // a window update, that has none
		synctest.Wait()
		c.Write(head)
		conn.gate <- struct{}{}
		c.Close()
		if len(conn.writes) != 2 || len(conn.writes[0]) != yamuxHead+7 || len(conn.writes[1]) != yamuxHead {
			t.Errorf("%d writes", len(conn.writes))
		}
	})
}

func TestContentThatLooksLikeAHeadDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, conn := newSlowCoalescer()
		head := make([]byte, yamuxHead)
		head[11] = yamuxHead
		content := bytes.Clone(head)
		c.Write(head)
		c.Write(content)
		synctest.Wait()
		if !c.writing {
			t.Error("it waits for more")
		}
		conn.gate <- struct{}{}
		c.Close()
	})
}

func TestFramesOfAllSizesLeaveWholeAndSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, conn := newSlowCoalescer()
		close(conn.gate) // not slow
		r := rand.New(rand.NewPCG(1, 2))
		var want []byte
		for range 300 {
			frame := make([]byte, yamuxHead+[]int{0, 1, yamuxHead, 1000, coalesceLarge - 1, coalesceLarge, maxFrame}[r.IntN(7)])
			binary.BigEndian.PutUint32(frame[8:], uint32(len(frame)-yamuxHead))
			for i := range frame[yamuxHead:] {
				frame[yamuxHead+i] = byte(r.IntN(2)) // which often looks like a head
			}
			want = append(want, frame...)
			c.Write(frame[:yamuxHead])
			if len(frame) > yamuxHead {
				c.Write(frame[yamuxHead:])
			}
			if r.IntN(4) == 0 {
				synctest.Wait()
				if len(c.buf) > 0 || c.writing {
					t.Fatalf("%d bytes stay behind a frame of %d", len(c.buf), len(frame))
				}
			}
		}
		c.Close()
		for _, w := range conn.writes {
			if len(w) > coalesceBuffer {
				t.Errorf("a write of %d bytes", len(w))
			}
		}
		if got := bytes.Join(conn.writes, nil); !bytes.Equal(got, want) {
			t.Errorf("%d bytes left, want %d, or they differ", len(got), len(want))
		}
	})
}

func TestCloseEndsALargeWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newSlowCoalescer()
		results := make(chan error, 2)
		for range 2 { // one is under way, one waits
			go func() {
				_, err := c.Write(make([]byte, maxFrame))
				results <- err
			}()
		}
		synctest.Wait()
		start := time.Now()
		c.Close() // nobody takes anything any more
		if took := time.Since(start); took != closeBound {
			t.Errorf("Close took %v, want %v", took, closeBound)
		}
		for range 2 {
			if err := <-results; !errors.Is(err, net.ErrClosed) {
				t.Errorf("got %v", err)
			}
		}
	})
}

func TestTheCoalescerHoldsNoMoreThanItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newSlowCoalescer()
		c.Write([]byte("x"))
		synctest.Wait()
		taken := make(chan int, 1)
		go func() {
			n, err := writeInPieces(c, 3*coalesceBuffer)
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("the blocked Write: %v", err)
			}
			taken <- n
		}()
		synctest.Wait()
		if len(c.buf) != coalesceQuiet {
			t.Errorf("%d bytes wait", len(c.buf))
		}
		start := time.Now()
		c.Close() // nobody takes anything any more
		if took := time.Since(start); took != closeBound {
			t.Errorf("Close took %v, want %v", took, closeBound)
		}
		if n := <-taken; n != coalesceQuiet {
			t.Errorf("%d bytes taken", n)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("a Write after Close passed")
		}
	})
}

func TestAWriteErrorSticks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, conn := newSlowCoalescer()
		conn.err = errors.New("wire cut")
		c.Write([]byte("x"))
		conn.gate <- struct{}{}
		synctest.Wait()
		for range 2 {
			if _, err := c.Write([]byte("y")); !errors.Is(err, conn.err) {
				t.Errorf("got %v", err)
			}
		}
		if err := c.cause(); !errors.Is(err, conn.err) {
			t.Errorf("cause is %v", err)
		}
		c.Close()
	})
}

// rateConn takes so many bytes a second.
type rateConn struct {
	net.Conn
	rate int // bytes per second

	mu     sync.Mutex
	writes int
	bytes  int
	marks  int // bytes that are not 0
}

func (c *rateConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	rate := c.rate
	c.mu.Unlock()
	time.Sleep(time.Duration(len(p)) * time.Second / time.Duration(rate))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	c.bytes += len(p)
	c.marks += len(p) - bytes.Count(p, []byte{0})
	return len(p), nil
}

func (c *rateConn) Close() error { return nil }

// totals returns how many writes, bytes and bytes that are not 0 c has taken.
func (c *rateConn) totals() (writes, bytes, marks int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes, c.bytes, c.marks
}

// fill writes to c as yamux does, one frame at a time: those of a stream that are zeros, as many as c
// takes, and those sent to bundles. The function returned ends it.
func fill(c *coalescer) (bundles chan<- []byte, stop func()) {
	frames, done := make(chan []byte), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case b := <-frames:
				_, _ = c.Write(b)
			case <-done:
				return
			}
		}
	})
	wg.Go(func() {
		for {
			select {
			case frames <- make([]byte, c.fit(maxFrame)):
			case <-done:
				return
			}
		}
	})
	return frames, func() { close(done); wg.Wait() }
}

// A bundle waits behind a stream for a time that hardly depends on the connection.
func TestFullConnectionDelaysABundleLittle(t *testing.T) {
	for _, rate := range []int{200_000, 1_000_000, 10_000_000, 100_000_000} {
		synctest.Test(t, func(t *testing.T) {
			conn := &rateConn{rate: rate}
			records := &recordConn{Conn: conn}
			c := newCoalescer(records, records, conn)
			bundles, stop := fill(c)
			time.Sleep(time.Second)
			_, before, _ := conn.totals()
			began := time.Now()
			var slowest time.Duration
			for i := range 100 {
				time.Sleep(11 * time.Millisecond)
				sent := time.Now()
				bundles <- []byte{1}
				for _, _, marks := conn.totals(); marks <= i; _, _, marks = conn.totals() {
					time.Sleep(100 * time.Microsecond)
				}
				slowest = max(slowest, time.Since(sent))
			}
			_, after, _ := conn.totals()
			used := float64(after-before) / time.Since(began).Seconds() / float64(rate)
			t.Logf("at %d B/s a bundle takes at most %v, and %.0f %% of the connection are used", rate, slowest, 100*used)
			// Two writes of coalesceBuffer would take 260 ms at 1 MB/s and five times that at 200 kB/s.
			if slowest > 150*time.Millisecond {
				t.Errorf("at %d B/s a bundle takes %v, want at most 150 ms", rate, slowest)
			}
			if used < 0.9 {
				t.Errorf("%.0f %% of %d B/s are used", 100*used, rate)
			}
			stop()
			c.Close()
		})
	}
}

func TestBusyStreamLeavesInLargeWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &rateConn{rate: 1 << 28}
		records := &recordConn{Conn: conn}
		c := newCoalescer(records, records, conn)
		_, stop := fill(c)
		large := func() {
			t.Helper()
			time.Sleep(100 * time.Millisecond)
			writes, n, _ := conn.totals()
			time.Sleep(100 * time.Millisecond)
			moreWrites, more, _ := conn.totals()
			if each := (more - n) / max(moreWrites-writes, 1); each < coalesceBuffer/2 {
				t.Errorf("writes have %d bytes, want at least %d", each, coalesceBuffer/2)
			}
		}
		large()
		conn.setRate(1 << 20)
		time.Sleep(2 * time.Second)
		conn.setRate(1 << 28)
		large()
		stop()
		for range 2 * coalesceCalm {
			c.Write([]byte("x"))
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if held := cap(c.buf) + cap(c.flight) + cap(c.records.held); held > coalesceQuiet {
			t.Errorf("quiet, it holds buffers of %d bytes, want at most %d", held, coalesceQuiet)
		}
		c.Close()
	})
}

func (c *rateConn) setRate(rate int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rate = rate
}
