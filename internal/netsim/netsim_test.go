package netsim

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
)

func pair(t testing.TB, client, server Config) (c, s carrier.Carrier, cEnd *End) {
	t.Helper()
	a, b := New(client, server)
	t.Cleanup(func() { a.Close(carrier.CodeNone, "") })
	c, s = carriertest.Shake(t, a, b)
	return c, s, a
}

func TestDelayDelaysEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 70 * time.Millisecond
		c, s, _ := pair(t, Config{Delay: delay}, Config{})
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

func TestOnlyALossyNetworkReorders(t *testing.T) {
	for _, lossy := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const bundles = 200
			c, s, _ := pair(t, Config{Jitter: 50 * time.Millisecond, Lossy: lossy, Queue: bundles, Seed: 3}, Config{})
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

func TestLossyNetworkLosesItsShareAndOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := func(config Config, sends int) int {
			c, s, _ := pair(t, config, Config{})
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
		if n := count(Config{Loss: 0.3, Seed: 1}, 10_000); n < 6800 || n > 7200 {
			t.Errorf("%d of 10,000 arrived at a loss of 0.3", n)
		}
		if n := count(Config{Delay: time.Second, Queue: 10, Lossy: true}, 25); n != 10 {
			t.Errorf("%d of 25 arrived through a queue of 10", n)
		}
	})
}

func TestRateSpacesBundles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := pair(t, Config{Rate: 10_000}, Config{})
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

func TestBreakTellsBothEndsTheSame(t *testing.T) {
	c, s, end := pair(t, Config{}, Config{})
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

func TestLimitMayShrink(t *testing.T) {
	c, _, end := pair(t, Config{MaxBundle: 1400}, Config{})
	if n := c.MaxBundle(); n != 1400 {
		t.Fatalf("MaxBundle is %d", n)
	}
	end.SetMaxBundle(1200)
	err := c.SendBundle(make([]byte, 1300))
	if large, ok := errors.AsType[*carrier.BundleTooLargeError](err); !ok || large.Max != 1200 {
		t.Errorf("got %v", err)
	}
}

func TestPerfectNetworkIsACarrier(t *testing.T) {
	carriertest.Run(t, carriertest.Transport{
		Pair: func(t testing.TB) (client, server carrier.Pending) {
			c, s := New(Config{}, Config{})
			t.Cleanup(func() { c.Close(carrier.CodeNone, "") })
			return c, s
		},
		Cut: func(client, _ carrier.Carrier) { client.(*End).Break(io.ErrUnexpectedEOF) },
	})
}
