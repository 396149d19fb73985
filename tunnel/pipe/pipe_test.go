package pipe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/testmain"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
)

func TestMain(m *testing.M) { testmain.Run(m) }

var transport = carriertest.Transport{
	Pair: func(t testing.TB) (client, server carrier.Pending) {
		c, s := New()
		t.Cleanup(func() { c.Close(carrier.CodeShutdown, "") })
		return c, s
	},
	Cut: func(client, _ carrier.Carrier) { client.(*End).Break(io.ErrUnexpectedEOF) },
}

func TestCarrier(t *testing.T) { carriertest.Run(t, transport) }

func BenchmarkCarrier(b *testing.B) { carriertest.Benchmark(b, transport) }

func pair(t testing.TB) (client, server carrier.Carrier) {
	t.Helper()
	return transport.Start(t)
}

func TestFullPipeMakesTheSenderWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
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
		if sent != maxBundles {
			t.Errorf("%d bundles taken, want %d", sent, maxBundles)
		}
		if n, err := s.ReceiveBundles(make([][]byte, 100)); n != maxBundles || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		s.Close(carrier.CodeReplaced, "bye")
		if err := <-done; !errors.Is(err, c.Err()) {
			t.Errorf("the blocked sender: %v", err)
		}
	})
}

func TestBundlesAllocateNothing(t *testing.T) {
	if testmain.Race {
		t.Skip("the race detector allocates")
	}
	c, s := pair(t)
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
	for range maxBundles {
		pass()
	}
	if n := testing.AllocsPerRun(1000, pass); n != 0 {
		t.Errorf("%v allocations for four bundles", n)
	}
}

func TestServerWaitsForTheClientsHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := New()
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

func TestStreamBufferGrowsAndWraps(t *testing.T) {
	c, s := pair(t)
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
		for len(want)-len(got) > maxUnread/2 {
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
