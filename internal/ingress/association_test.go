package ingress

import (
	"testing"

	"wmproxy/internal/stats"
	"wmproxy/internal/testmain"
	"wmproxy/internal/udpio"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

// While nothing is attached the queue fills, and then each datagram pushes out the
// oldest: that must cost no memory either.
func TestAnAssociationSendsWithoutAllocating(t *testing.T) {
	if testmain.Race {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	var numbers tunnel.FlowNumbers
	here := tunnel.NewSession(tunnel.SessionConfig{Numbers: &numbers})
	there := tunnel.NewSession(tunnel.SessionConfig{Numbers: &numbers})
	defer here.Close(carrier.CodeNone, "")
	defer there.Close(carrier.CodeNone, "")
	var sessions Preferred
	sessions.Set(here)
	route := NewRoute(&sessions)
	a := &association{route: route}
	if !a.open() {
		t.Fatal("no flow could be opened")
	}
	defer a.End()
	ms := make([]udpio.Message, 64)
	for i := range ms {
		ms[i].Body = make([]byte, 1200)
	}
	for _, preferred := range []*tunnel.Session{here, there} {
		sessions.Set(preferred)
		for range 100 { // beyond the queue's 2 MiB
			a.Send(ms)
		}
		if n := testing.AllocsPerRun(100, func() { a.Send(ms) }); n != 0 {
			t.Errorf("%v allocations for 64 datagrams", n)
		}
	}
	if drops := a.Dropped(); drops[stats.QueueFull] == 0 {
		t.Errorf("the queue was never full: %v", drops)
	}
}
