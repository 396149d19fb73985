package queue

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"wmproxy/internal/stats"
	"wmproxy/internal/testmain"
	"wmproxy/internal/udpio"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/wire"
)

func newTestQueue() (*Queue, *stats.Drops, *Sender) {
	drops := &stats.Drops{}
	q := &Queue{}
	s := NewSender(false)
	q.Use(s)
	return q, drops, s
}

// countIn makes the drops of flows count in total.
func countIn(total *stats.Drops, flows ...*Flow) {
	for _, f := range flows {
		f.Drops.In(total)
	}
}

func oneMessage(body []byte) []udpio.Message { return []udpio.Message{{Body: body}} }

// drain pulls bundles of at most limit bytes until the queue is empty and
// returns the datagrams by flow.
func drain(t *testing.T, q *Queue, s *Sender, limit int, now time.Duration) (byFlow map[uint64][][]byte, bundles int) {
	t.Helper()
	byFlow = make(map[uint64][][]byte)
	var r wire.Reassembler
	defer r.Close()
	for {
		b := q.Fill(make([]byte, 0, limit), limit, s, now)
		if len(b) == 0 {
			return byFlow, bundles
		}
		if len(b) > limit {
			t.Fatalf("bundle of %d bytes, limit %d", len(b), limit)
		}
		bundles++
		for len(b) > 0 {
			rec, rest, err := wire.ParseRecord(b)
			if err != nil {
				t.Fatal(err)
			}
			b = rest
			body := rec.Body
			if rec.Fragment {
				if body = r.Add(&rec, now); body == nil {
					continue
				}
			}
			byFlow[rec.Flow] = append(byFlow[rec.Flow], bytes.Clone(body))
		}
	}
}

func TestDatagramsOfEverySizeLeaveInOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, limit := range []int{carrier.MinBundle, 1404, carrier.MaxBundleSize} {
		q, drops, s := newTestQueue()
		flows := []*Flow{{ID: 2}, {ID: 4}, {ID: 6}}
		countIn(drops, flows...)
		want := make(map[uint64][][]byte)
		for _, size := range []int{1, 7, 600, limit - 20, limit - 3, limit, limit + 1, 9000, wire.MaxBody, 64, 64} {
			for _, f := range flows {
				body := make([]byte, size)
				for i := range body {
					body[i] = byte(rng.Uint32())
				}
				q.Push(f, oneMessage(body), 0)
				want[f.ID] = append(want[f.ID], body)
			}
		}
		got, _ := drain(t, q, s, limit, 0)
		for id, bodies := range want {
			if len(got[id]) != len(bodies) {
				t.Fatalf("limit %d, flow %d: %d datagrams, want %d (drops %v)", limit, id, len(got[id]), len(bodies), drops.Dropped())
			}
			for i := range bodies {
				if !bytes.Equal(got[id][i], bodies[i]) {
					t.Errorf("limit %d, flow %d: datagram %d of %d bytes differs", limit, id, i, len(bodies[i]))
				}
			}
		}
		if q.bytes != 0 || q.flows != 0 || q.turn != nil {
			t.Errorf("left over: %d bytes, %d flows", q.bytes, q.flows)
		}
	}
}

func TestWaitingDatagramsShareABundle(t *testing.T) {
	q, _, s := newTestQueue()
	f := &Flow{ID: 2}
	for range 18 {
		q.Push(f, oneMessage(make([]byte, 71)), 0)
	}
	if _, bundles := drain(t, q, s, 1404, 0); bundles != 1 {
		t.Errorf("%d bundles for 18 datagrams of 64 bytes, want 1", bundles)
	}
}

func TestAFloodTakesNoOthersPlace(t *testing.T) {
	q, drops, s := newTestQueue()
	flood, voice := &Flow{ID: 2}, &Flow{ID: 4}
	countIn(drops, flood, voice)
	q.Push(voice, oneMessage([]byte("voice 1")), 0)
	for range 4 * maxQueueBytes / 1200 {
		q.Push(flood, oneMessage(make([]byte, 1200)), 0)
	}
	q.Push(voice, oneMessage([]byte("voice 2")), 0)
	if q.bytes > maxQueueBytes {
		t.Errorf("%d bytes wait, bound %d", q.bytes, maxQueueBytes)
	}
	if drops.Dropped()[stats.QueueFull] == 0 {
		t.Error("the flood lost nothing")
	}
	b := q.Fill(nil, 2*quantum, s, 0)
	if !bytes.Contains(b, []byte("voice 1")) || !bytes.Contains(b, []byte("voice 2")) {
		t.Error("the voice flow is not in the first bundle")
	}
}

func TestWhatWaitedTooLongIsDroppedWhenItsTurnComes(t *testing.T) {
	q, drops, s := newTestQueue()
	f := &Flow{ID: 2}
	countIn(drops, f)
	q.Push(f, oneMessage([]byte("old")), 0)
	q.Push(f, oneMessage([]byte("new")), 100*time.Millisecond)
	got, _ := drain(t, q, s, 1404, maxAge+time.Millisecond)
	if len(got[2]) != 1 || string(got[2][0]) != "new" || drops.Dropped()[stats.Stale] != 1 {
		t.Errorf("got %q, drops %v", got[2], drops.Dropped())
	}
}

func TestTheOldestIsDroppedFirst(t *testing.T) {
	q, _, s := newTestQueue()
	f := &Flow{ID: 2}
	n := 2 * maxQueueBytes / (200 + packetOverhead)
	for i := range n {
		q.Push(f, oneMessage(fmt.Appendf(make([]byte, 0, 200), "%0200d", i)), 0)
	}
	got, _ := drain(t, q, s, 1404, 0)
	last := got[2][len(got[2])-1]
	if want := fmt.Appendf(nil, "%0200d", n-1); !bytes.Equal(last, want) {
		t.Errorf("the newest is %s, want %s", last, want)
	}
	first := got[2][0]
	if want := fmt.Appendf(nil, "%0200d", n-len(got[2])); !bytes.Equal(first, want) {
		t.Errorf("the oldest left is %s, want %s", first, want)
	}
}

func TestFragmentsStartAgainOnAnotherCarrier(t *testing.T) {
	q, _, s1 := newTestQueue()
	f := &Flow{ID: 2}
	body := bytes.Repeat([]byte("0123456789"), 500)
	q.Push(f, oneMessage(body), 0)
	if b := q.Fill(nil, 1404, s1, 0); len(b) == 0 {
		t.Fatal("nothing left over the first carrier")
	}
	s2 := NewSender(false)
	q.Use(s2)
	if b := q.Fill(nil, 1404, s1, 0); len(b) != 0 {
		t.Fatal("a carrier that no longer serves got a bundle")
	}
	got, _ := drain(t, q, s2, 1404, 0)
	if len(got[2]) != 1 || !bytes.Equal(got[2][0], body) {
		t.Error("the datagram did not arrive whole over the second carrier")
	}
}

func TestAFlowServesAQuantumBeforeTheNextOne(t *testing.T) {
	q, _, s := newTestQueue()
	a, b := &Flow{ID: 2}, &Flow{ID: 4}
	for range 100 {
		q.Push(a, oneMessage(make([]byte, 100)), 0)
		q.Push(b, oneMessage(make([]byte, 100)), 0)
	}
	bundle := q.Fill(nil, 10*quantum, s, 0)
	count := map[uint64]int{}
	for len(bundle) > 0 {
		rec, rest, err := wire.ParseRecord(bundle)
		if err != nil {
			t.Fatal(err)
		}
		count[rec.Flow]++
		bundle = rest
	}
	if d := count[2] - count[4]; d < -20 || d > 20 {
		t.Errorf("%d and %d datagrams of two equal flows in one bundle", count[2], count[4])
	}
}

func TestAFullBundleIsExactWhereThatIsCheaper(t *testing.T) {
	const limit = 1404
	for _, size := range []int{67, 167, 727, 1207, 1379, 8007} {
		q, drops, _ := newTestQueue()
		s := NewSender(true)
		q.Use(s)
		f := &Flow{ID: 2}
		countIn(drops, f)
		sent := 0
		for range 40 {
			q.Push(f, oneMessage(make([]byte, size)), 0)
			sent++
		}
		padding, bundles, got := 0, 0, 0
		var r wire.Reassembler
		for {
			b := q.Fill(make([]byte, 0, limit), limit, s, 0)
			if len(b) == 0 {
				break
			}
			bundles++
			if len(b) != limit && q.turn != nil {
				t.Errorf("%d bytes: bundle %d has %d bytes, want %d", size, bundles, len(b), limit)
			}
			for len(b) > 0 {
				rec, rest, err := wire.ParseRecord(b)
				if err != nil {
					t.Fatal(err)
				}
				if rec.Padding() {
					padding += len(b)
					break
				}
				if !rec.Fragment || r.Add(&rec, 0) != nil {
					got++
				}
				b = rest
			}
		}
		r.Close()
		if got != sent {
			t.Errorf("%d bytes: %d datagrams arrived, want %d; drops %v", size, got, sent, drops.Dropped())
		}
		if share := float64(padding) / float64(bundles*limit); share > 1.0/smallRoom {
			t.Errorf("%d bytes: %.0f %% padding", size, 100*share)
		}
	}
}

func TestNothingIsPaddedOnACongestedPath(t *testing.T) {
	const limit = 1404
	q, _, _ := newTestQueue()
	s := NewSender(true)
	q.Use(s)
	f := &Flow{ID: 2}
	for range 40 {
		q.Push(f, oneMessage(make([]byte, 167)), 0)
	}
	for {
		b := q.Fill(make([]byte, 0, limit), limit, s, congestedAfter)
		if len(b) == 0 {
			break
		}
		for len(b) > 0 {
			rec, rest, err := wire.ParseRecord(b)
			if err != nil || rec.Padding() {
				t.Fatalf("padding or %v", err)
			}
			b = rest
		}
	}
}

func TestTheQueueDoesNotAllocate(t *testing.T) {
	if testmain.Race {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	q, _, s := newTestQueue()
	f := &Flow{ID: 2}
	ms := []udpio.Message{{Head: make([]byte, 7), Body: make([]byte, 64)}, {Body: make([]byte, 1200)}}
	buf := make([]byte, 0, 1404)
	n := testing.AllocsPerRun(1000, func() {
		q.Push(f, ms, 0)
		for len(q.Fill(buf, 1404, s, 0)) > 0 {
		}
		select {
		case <-s.Wake:
		default:
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per batch", n)
	}
}

func BenchmarkQueue(b *testing.B) {
	for _, size := range []int{64, 1200, 8000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			q := &Queue{}
			s := NewSender(false)
			q.Use(s)
			f := &Flow{ID: 2}
			ms := make([]udpio.Message, 16)
			for i := range ms {
				ms[i] = udpio.Message{Head: make([]byte, 7), Body: make([]byte, size)}
			}
			buf := make([]byte, 0, 1404)
			for b.Loop() {
				q.Push(f, ms, 0)
				for len(q.Fill(buf, 1404, s, 0)) > 0 {
				}
				select {
				case <-s.Wake:
				default:
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/datagram")
		})
	}
}
