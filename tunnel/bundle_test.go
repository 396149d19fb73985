package tunnel

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
)

func newTestQueue() (*queue, *stats.Drops, *sender) {
	drops := &stats.Drops{}
	q := &queue{}
	s := newSender(false)
	q.use(s)
	return q, drops, s
}

// countIn makes the drops of flows count in total.
func countIn(total *stats.Drops, flows ...*flowQueue) {
	for _, f := range flows {
		f.drops.In(total)
	}
}

func message(body []byte) []udpio.Message { return []udpio.Message{{Body: body}} }

// drain pulls bundles of at most limit bytes until the queue is empty and
// returns the datagrams by flow.
func drain(t *testing.T, q *queue, s *sender, limit int, now time.Duration) (byFlow map[uint64][][]byte, bundles int) {
	t.Helper()
	byFlow = make(map[uint64][][]byte)
	var r reassembler
	defer r.close()
	for {
		b := q.fill(make([]byte, 0, limit), limit, s, now)
		if len(b) == 0 {
			return byFlow, bundles
		}
		if len(b) > limit {
			t.Fatalf("bundle of %d bytes, limit %d", len(b), limit)
		}
		bundles++
		for len(b) > 0 {
			rec, rest, err := parseRecord(b)
			if err != nil {
				t.Fatal(err)
			}
			b = rest
			body := rec.body
			if rec.fragment {
				if body = r.add(&rec, now); body == nil {
					continue
				}
			}
			byFlow[rec.flow] = append(byFlow[rec.flow], bytes.Clone(body))
		}
	}
}

func TestDatagramsOfEverySizeLeaveInOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, limit := range []int{MinBundle, 1404, MaxBundleSize} {
		q, drops, s := newTestQueue()
		flows := []*flowQueue{{id: 2}, {id: 4}, {id: 6}}
		countIn(drops, flows...)
		want := make(map[uint64][][]byte)
		for _, size := range []int{1, 7, 600, limit - 20, limit - 3, limit, limit + 1, 9000, MaxBody, 64, 64} {
			for _, f := range flows {
				body := make([]byte, size)
				for i := range body {
					body[i] = byte(rng.Uint32())
				}
				q.push(f, message(body), 0)
				want[f.id] = append(want[f.id], body)
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
	f := &flowQueue{id: 2}
	for range 18 {
		q.push(f, message(make([]byte, 71)), 0)
	}
	if _, bundles := drain(t, q, s, 1404, 0); bundles != 1 {
		t.Errorf("%d bundles for 18 datagrams of 64 bytes, want 1", bundles)
	}
}

func TestAFloodTakesNoOthersPlace(t *testing.T) {
	q, drops, s := newTestQueue()
	flood, voice := &flowQueue{id: 2}, &flowQueue{id: 4}
	countIn(drops, flood, voice)
	q.push(voice, message([]byte("voice 1")), 0)
	for range 4 * maxQueueBytes / 1200 {
		q.push(flood, message(make([]byte, 1200)), 0)
	}
	q.push(voice, message([]byte("voice 2")), 0)
	if q.bytes > maxQueueBytes {
		t.Errorf("%d bytes wait, bound %d", q.bytes, maxQueueBytes)
	}
	if drops.Dropped()[stats.QueueFull] == 0 {
		t.Error("the flood lost nothing")
	}
	b := q.fill(nil, 2*quantum, s, 0)
	if !bytes.Contains(b, []byte("voice 1")) || !bytes.Contains(b, []byte("voice 2")) {
		t.Error("the voice flow is not in the first bundle")
	}
}

func TestWhatWaitedTooLongIsDroppedWhenItsTurnComes(t *testing.T) {
	q, drops, s := newTestQueue()
	f := &flowQueue{id: 2}
	countIn(drops, f)
	q.push(f, message([]byte("old")), 0)
	q.push(f, message([]byte("new")), 100*time.Millisecond)
	got, _ := drain(t, q, s, 1404, maxQueueAge+time.Millisecond)
	if len(got[2]) != 1 || string(got[2][0]) != "new" || drops.Dropped()[stats.Stale] != 1 {
		t.Errorf("got %q, drops %v", got[2], drops.Dropped())
	}
}

func TestTheOldestIsDroppedFirst(t *testing.T) {
	q, _, s := newTestQueue()
	f := &flowQueue{id: 2}
	n := 2 * maxQueueBytes / (200 + packetOverhead)
	for i := range n {
		q.push(f, message(fmt.Appendf(make([]byte, 0, 200), "%0200d", i)), 0)
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

func TestADatagramInFragmentsStartsAgainOnAnotherCarrier(t *testing.T) {
	q, _, s1 := newTestQueue()
	f := &flowQueue{id: 2}
	body := bytes.Repeat([]byte("0123456789"), 500)
	q.push(f, message(body), 0)
	if b := q.fill(nil, 1404, s1, 0); len(b) == 0 {
		t.Fatal("nothing left over the first carrier")
	}
	s2 := newSender(false)
	q.use(s2)
	if b := q.fill(nil, 1404, s1, 0); len(b) != 0 {
		t.Fatal("a carrier that no longer serves got a bundle")
	}
	got, _ := drain(t, q, s2, 1404, 0)
	if len(got[2]) != 1 || !bytes.Equal(got[2][0], body) {
		t.Error("the datagram did not arrive whole over the second carrier")
	}
}

func TestAFlowServesAQuantumBeforeTheNextOne(t *testing.T) {
	q, _, s := newTestQueue()
	a, b := &flowQueue{id: 2}, &flowQueue{id: 4}
	for range 100 {
		q.push(a, message(make([]byte, 100)), 0)
		q.push(b, message(make([]byte, 100)), 0)
	}
	bundle := q.fill(nil, 10*quantum, s, 0)
	count := map[uint64]int{}
	for len(bundle) > 0 {
		rec, rest, err := parseRecord(bundle)
		if err != nil {
			t.Fatal(err)
		}
		count[rec.flow]++
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
		s := newSender(true)
		q.use(s)
		f := &flowQueue{id: 2}
		countIn(drops, f)
		sent := 0
		for range 40 {
			q.push(f, message(make([]byte, size)), 0)
			sent++
		}
		padding, bundles, got := 0, 0, 0
		var r reassembler
		for {
			b := q.fill(make([]byte, 0, limit), limit, s, 0)
			if len(b) == 0 {
				break
			}
			bundles++
			if len(b) != limit && q.turn != nil {
				t.Errorf("%d bytes: bundle %d has %d bytes, want %d", size, bundles, len(b), limit)
			}
			for len(b) > 0 {
				rec, rest, err := parseRecord(b)
				if err != nil {
					t.Fatal(err)
				}
				if rec.padding() {
					padding += len(b)
					break
				}
				if !rec.fragment || r.add(&rec, 0) != nil {
					got++
				}
				b = rest
			}
		}
		r.close()
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
	s := newSender(true)
	q.use(s)
	f := &flowQueue{id: 2}
	for range 40 {
		q.push(f, message(make([]byte, 167)), 0)
	}
	for {
		b := q.fill(make([]byte, 0, limit), limit, s, congestedAfter)
		if len(b) == 0 {
			break
		}
		for len(b) > 0 {
			rec, rest, err := parseRecord(b)
			if err != nil || rec.padding() {
				t.Fatalf("padding or %v", err)
			}
			b = rest
		}
	}
}

func TestTheQueueDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	q, _, s := newTestQueue()
	f := &flowQueue{id: 2}
	ms := []udpio.Message{{Head: make([]byte, 7), Body: make([]byte, 64)}, {Body: make([]byte, 1200)}}
	buf := make([]byte, 0, 1404)
	n := testing.AllocsPerRun(1000, func() {
		q.push(f, ms, 0)
		for len(q.fill(buf, 1404, s, 0)) > 0 {
		}
		select {
		case <-s.wake:
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
			q := &queue{}
			s := newSender(false)
			q.use(s)
			f := &flowQueue{id: 2}
			ms := make([]udpio.Message, 16)
			for i := range ms {
				ms[i] = udpio.Message{Head: make([]byte, 7), Body: make([]byte, size)}
			}
			buf := make([]byte, 0, 1404)
			for b.Loop() {
				q.push(f, ms, 0)
				for len(q.fill(buf, 1404, s, 0)) > 0 {
				}
				select {
				case <-s.wake:
				default:
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/datagram")
		})
	}
}
