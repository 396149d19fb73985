package tunnel

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"wmproxy/internal/netsim"
	"wmproxy/internal/testmain"
	"wmproxy/internal/udpio"
	"wmproxy/internal/user"
	"wmproxy/tunnel/carrier"
)

// bounce is an exit that sends every datagram back, without allocating.
type bounce struct{}

func (bounce) OpenFlow(f *Flow) (FlowHandler, EndCode) {
	return &bounceFlow{flow: f, ms: make([]udpio.Message, 0, 64)}, 0
}
func (bounce) ServeStream(_ context.Context, in *IncomingStream) { in.Refuse(replyUnsupported) }

type bounceFlow struct {
	flow *Flow
	ms   []udpio.Message
}

func (b *bounceFlow) Receive(bodies [][]byte) {
	b.ms = b.ms[:0]
	for _, body := range bodies {
		b.ms = append(b.ms, udpio.Message{Body: body})
	}
	b.flow.Send(b.ms)
}
func (b *bounceFlow) Ended(EndCode) {}

// counter counts what comes back and says when as many as were sent have.
type counter struct {
	n    atomic.Int64
	goal atomic.Int64
	done chan struct{}
}

func (c *counter) Receive(bodies [][]byte) {
	if c.n.Add(int64(len(bodies))) == c.goal.Load() {
		c.done <- struct{}{}
	}
}
func (c *counter) Ended(EndCode) {}

// newPath joins a client's flow with a bouncing exit over a pipe.
func newPath(tb testing.TB, cfg netsim.Config) (f *Flow, back *counter) {
	tb.Helper()
	near, far := netsim.New(cfg, cfg)
	registry := NewRegistry(RegistryConfig{
		Authenticate: anyone,
		Exit:         func(*user.User) Exit { return bounce{} },
	})
	s := NewSession(SessionConfig{Transports: testTransports})
	tb.Cleanup(func() {
		s.Close(carrier.CodeNone, "")
		registry.Close(carrier.CodeNone, "")
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := registry.Attach(context.Background(), far); err != nil {
			tb.Error(err)
		}
	})
	if _, err := s.Attach(context.Background(), near, Credentials{}); err != nil {
		tb.Fatal(err)
	}
	wg.Wait()
	back = &counter{done: make(chan struct{}, 1)}
	f, err := s.OpenFlow(back)
	if err != nil {
		tb.Fatal(err)
	}
	return f, back
}

// roundTrip sends ms and waits until all have come back.
func (c *counter) roundTrip(f *Flow, ms []udpio.Message) {
	c.goal.Store(c.n.Load() + int64(len(ms)))
	f.Send(ms)
	<-c.done
}

func TestTheWayThereAndBackDoesNotAllocate(t *testing.T) {
	if testmain.Race {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	for _, size := range []int{64, 1200, 8000} {
		f, back := newPath(t, netsim.Config{MaxBundle: 1404})
		ms := make([]udpio.Message, 8)
		for i := range ms {
			ms[i] = udpio.Message{Head: make([]byte, 7), Body: make([]byte, size)}
		}
		for range 100 {
			back.roundTrip(f, ms)
		}
		if n := testing.AllocsPerRun(1000, func() { back.roundTrip(f, ms) }); n >= 1 {
			t.Errorf("%d bytes: %v allocations for 8 datagrams there and back", size, n)
		}
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	for _, size := range []int{64, 1200, 8000} {
		for _, batch := range []int{1, 16} {
			b.Run(fmt.Sprintf("%dx%d", batch, size), func(b *testing.B) {
				f, back := newPath(b, netsim.Config{MaxBundle: 1404})
				ms := make([]udpio.Message, batch)
				for i := range ms {
					ms[i] = udpio.Message{Head: make([]byte, 7), Body: make([]byte, size)}
				}
				b.ReportAllocs()
				for b.Loop() {
					back.roundTrip(f, ms)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/datagram")
			})
		}
	}
}
