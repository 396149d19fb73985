package tunnel

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

func TestALargeFrameMakesRoomForMoreAndQuietWritersGiveItBack(t *testing.T) {
	for _, standstill := range []time.Duration{0, time.Second} {
		synctest.Test(t, func(t *testing.T) { growAndGoQuiet(t, standstill) })
	}
}

// growAndGoQuiet has one write take as long as standstill at the end.
func growAndGoQuiet(t *testing.T, standstill time.Duration) {
	c, conn := newSlowCoalescer()
	go writeInPieces(c, 8*coalesceBuffer)
	for _, want := range []int{coalesceQuiet, coalesceQuiet, 2 * coalesceQuiet, coalesceBuffer, coalesceBuffer} {
		synctest.Wait()
		if c.bound() != want || len(c.buf) != want {
			t.Errorf("%d bytes wait of %d, want %d", len(c.buf), c.bound(), want)
		}
		if got := c.fit(coalesceBuffer); got != want {
			t.Errorf("of a large frame it takes %d, want %d", got, want)
		}
		conn.gate <- struct{}{}
	}
	time.Sleep(standstill)
	for synctest.Wait(); len(c.buf) > 0 || c.writing; synctest.Wait() {
		c.fit(coalesceBuffer)
		conn.gate <- struct{}{}
	}
	for range 1 + coalesceCalm { // before the first a stream wanted much
		c.Write([]byte("x"))
		conn.gate <- struct{}{}
		synctest.Wait()
	}
	if held := cap(c.buf) + cap(c.flight) + cap(c.records.held); c.bound() != coalesceQuiet || held > coalesceQuiet {
		t.Errorf("quiet, it takes %d bytes and holds buffers of %d", c.bound(), held)
	}
	c.Close()
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

func TestASlowConnectionIsGivenLittleAtATimeAndABusyOneMuch(t *testing.T) {
	const fast, slow = coalesceDelay / 10, 4 * coalesceDelay
	limit := coalesceLimit{bytes: coalesceQuiet}
	for i, step := range []struct {
		n      int
		took   time.Duration
		wanted int
		want   int
	}{
		{100, fast, 0, coalesceQuiet},
		{coalesceQuiet, fast, maxFrame, 2 * coalesceQuiet},
		{2 * coalesceQuiet, fast, maxFrame, coalesceBuffer},
		{coalesceBuffer, fast, maxFrame, coalesceBuffer},
		{12, fast, 0, coalesceBuffer},
		{2 * coalesceBuffer, coalesceDelay + 1, maxFrame, coalesceBuffer},
		{coalesceBuffer, slow, maxFrame, coalesceBuffer / 4}, // what takes 5 ms
		{coalesceBuffer / 4, coalesceDelay, maxFrame, coalesceBuffer / 2},
		{coalesceBuffer / 2, slow, maxFrame, coalesceBuffer / 8},
		{100, time.Second, 0, coalesceLeast}, // it stood still
		{100, fast, 0, 2 * coalesceLeast},
		{100, fast, maxFrame, 4 * coalesceLeast},
		{100, fast, maxFrame, coalesceQuiet},
	} {
		if limit.wrote(step.n, step.took, step.wanted); limit.bytes != step.want {
			t.Errorf("step %d: after %d bytes in %v the limit is %d, want %d", i, step.n, step.took, limit.bytes, step.want)
		}
	}
}

func TestAConnectionThatGoesQuietKeepsLittle(t *testing.T) {
	for _, before := range []int{coalesceBuffer, coalesceQuiet, coalesceLeast} {
		limit := coalesceLimit{bytes: before}
		for n := range 2 * coalesceCalm {
			// However much bundles there are.
			if calm := limit.wrote(coalesceQuiet, 0, coalesceQuiet); calm != (n+1 == coalesceCalm) {
				t.Errorf("from %d: after %d writes calm is %v", before, n+1, calm)
			}
			if before == coalesceBuffer && n+1 < coalesceCalm != (limit.bytes == coalesceBuffer) {
				t.Errorf("after %d writes %d bytes may wait", n+1, limit.bytes)
			}
		}
		if limit.bytes != coalesceQuiet {
			t.Errorf("from %d: %d bytes may wait in the end", before, limit.bytes)
		}
	}
	limit := coalesceLimit{bytes: coalesceBuffer}
	for i := range 10 * coalesceCalm {
		wanted := 0
		if i%coalesceCalm == 0 {
			wanted = coalesceQuiet + 1
		}
		if limit.wrote(100, 0, wanted); limit.bytes != coalesceBuffer {
			t.Fatalf("%d bytes though a stream wants much before every %dth write", limit.bytes, coalesceCalm)
		}
	}
}
