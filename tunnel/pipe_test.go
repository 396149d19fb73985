package tunnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
)

func pipePair(t testing.TB, client, server PipeConfig) (c, s carrier.Carrier, cEnd *PipeEnd) {
	t.Helper()
	a, b := NewPipe(client, server)
	t.Cleanup(func() { a.Close(carrier.CodeNone, "") })
	c, s = carriertest.Shake(t, a, b)
	return c, s, a
}

func TestAPipeDelaysEverythingByItsDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 70 * time.Millisecond
		c, s, _ := pipePair(t, PipeConfig{Delay: delay}, PipeConfig{})
		start := time.Now()
		if err := c.SendBundle([]byte{1}); err != nil {
			t.Fatal(err)
		}
		a, err := c.OpenStream(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.AcceptStream(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		a.Write([]byte("hi"))
		a.CloseWrite()
		c.Control().Write([]byte("c"))
		if n, err := s.ReceiveBundles(make([][]byte, 4)); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if got, err := io.ReadAll(b); string(got) != "hi" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		io.ReadFull(s.Control(), make([]byte, 1))
		if took := time.Since(start); took != delay {
			t.Errorf("took %v, want %v", took, delay)
		}
	})
}

func TestOnlyALossyPipeReorders(t *testing.T) {
	for _, lossy := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const bundles = 200
			c, s, _ := pipePair(t, PipeConfig{Jitter: 50 * time.Millisecond, Lossy: lossy, Queue: bundles, Seed: 3}, PipeConfig{})
			for i := range bundles {
				if err := c.SendBundle(binary.BigEndian.AppendUint16(nil, uint16(i))); err != nil {
					t.Fatal(err)
				}
			}
			seen := make([]bool, bundles)
			dst := make([][]byte, 7)
			late, last := 0, -1
			for got := 0; got < bundles; {
				n, err := s.ReceiveBundles(dst)
				if err != nil {
					t.Fatal(err)
				}
				for _, b := range dst[:n] {
					i := int(binary.BigEndian.Uint16(b))
					if seen[i] {
						t.Fatalf("bundle %d came twice", i)
					}
					seen[i] = true
					if i < last {
						late++
					}
					last = max(last, i)
					got++
				}
			}
			if lossy != (late > 0) {
				t.Errorf("lossy %v: %d bundles came late", lossy, late)
			}
		})
	}
}

func TestLossyPipeLosesItsShareAndOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := func(config PipeConfig, sends int) int {
			c, s, _ := pipePair(t, config, PipeConfig{})
			got := make(chan int, 1)
			go func() {
				n := 0
				dst := make([][]byte, 16)
				for {
					k, err := s.ReceiveBundles(dst)
					if err != nil {
						got <- n
						return
					}
					n += k
				}
			}()
			for range sends {
				if err := c.SendBundle([]byte{1}); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Minute)
			c.Close(carrier.CodeNone, "")
			return <-got
		}
		if n := count(PipeConfig{Loss: 0.3, Seed: 1}, 10_000); n < 6800 || n > 7200 {
			t.Errorf("%d of 10,000 arrived at a loss of 0.3", n)
		}
		if n := count(PipeConfig{Delay: time.Second, Queue: 10, Lossy: true}, 25); n != 10 {
			t.Errorf("%d of 25 arrived through a queue of 10", n)
		}
	})
}

func TestAPipesRateSpacesItsBundles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := pipePair(t, PipeConfig{Rate: 10_000}, PipeConfig{})
		start := time.Now()
		for range 20 {
			if err := c.SendBundle(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		}
		dst := make([][]byte, 20)
		for got := 0; got < 20; {
			n, err := s.ReceiveBundles(dst)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("20 kB at 10 kB/s took %v", took)
		}
	})
}

func TestAFullPipeMakesTheSenderWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := pipePair(t, PipeConfig{}, PipeConfig{})
		sent := 0
		done := make(chan error, 1)
		go func() {
			for {
				if err := c.SendBundle([]byte{1}); err != nil {
					done <- err
					return
				}
				sent++
			}
		}()
		synctest.Wait()
		if sent != pipeQueue {
			t.Errorf("%d bundles taken, want %d", sent, pipeQueue)
		}
		if n, err := s.ReceiveBundles(make([][]byte, 100)); n != pipeQueue || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		s.Close(carrier.CodeReplaced, "bye")
		if err := <-done; !errors.Is(err, c.Err()) {
			t.Errorf("the blocked sender: %v", err)
		}
	})
}

func TestABrokenPipeTellsBothEndsTheSame(t *testing.T) {
	c, s, end := pipePair(t, PipeConfig{}, PipeConfig{})
	cause := errors.New("cable pulled")
	end.Break(cause)
	for _, c := range []carrier.Carrier{c, s} {
		<-c.Done()
		if c.Err() != cause {
			t.Errorf("Err is %v", c.Err())
		}
		if _, err := c.ReceiveBundles(make([][]byte, 1)); err != cause {
			t.Errorf("ReceiveBundles: %v", err)
		}
		if _, err := c.Control().Read(make([]byte, 1)); !errors.Is(err, cause) {
			t.Errorf("control: %v", err)
		}
	}
}

func TestAPipesLimitMayShrink(t *testing.T) {
	c, _, end := pipePair(t, PipeConfig{MaxBundle: 1400}, PipeConfig{})
	if n := c.MaxBundle(); n != 1400 {
		t.Fatalf("MaxBundle is %d", n)
	}
	end.SetMaxBundle(1200)
	err := c.SendBundle(make([]byte, 1300))
	if large, ok := errors.AsType[*carrier.BundleTooLargeError](err); !ok || large.Max != 1200 {
		t.Errorf("got %v", err)
	}
}

func TestAPipeAllocatesNothingPerBundle(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	c, s, _ := pipePair(t, PipeConfig{}, PipeConfig{})
	b := make([]byte, 1400)
	dst := make([][]byte, 8)
	pass := func() {
		for range 4 {
			if err := c.SendBundle(b); err != nil {
				t.Fatal(err)
			}
		}
		for got := 0; got < 4; {
			n, err := s.ReceiveBundles(dst)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	}
	for range pipeQueue {
		pass()
	}
	if n := testing.AllocsPerRun(1000, pass); n != 0 {
		t.Errorf("%v allocations for four bundles", n)
	}
}

func TestAPipesServerWaitsForTheClientsHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := NewPipe(PipeConfig{}, PipeConfig{})
		waiting := make(chan error, 1)
		go func() {
			_, err := b.Handshake(context.Background())
			waiting <- err
		}()
		synctest.Wait()
		select {
		case <-waiting:
			t.Error("the server did not wait")
		default:
		}
		a.Close(carrier.CodeVersion, "too old")
		closed, ok := errors.AsType[*carrier.CloseError](<-waiting)
		if !ok || closed.Code != carrier.CodeVersion || closed.Reason != "too old" {
			t.Errorf("got %v", closed)
		}
		if _, err := a.Handshake(context.Background()); err != net.ErrClosed && err != nil {
			t.Error(err)
		}
	})
}

func TestAPipesStreamBufferGrowsAndWraps(t *testing.T) {
	c, s, _ := pipePair(t, PipeConfig{}, PipeConfig{})
	a, b := carriertest.OpenPair(t, c, s)
	var want, got []byte
	buf := make([]byte, 40_000)
	for i := range 60 {
		piece := make([]byte, 1+i*1777%30_000)
		carriertest.Numbered(piece, i)
		want = append(want, piece...)
		a.SetDeadline(time.Now().Add(carriertest.Patience))
		if _, err := a.Write(piece); err != nil {
			t.Fatal(err)
		}
		n, err := b.Read(buf[:1+i*977%40_000])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
		for len(want)-len(got) > pipeWindow/2 {
			n, err := b.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, buf[:n]...)
		}
	}
	a.CloseWrite()
	rest, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(append(got, rest...), want) {
		t.Errorf("%d bytes differ from %d, %v", len(got)+len(rest), len(want), err)
	}
}
