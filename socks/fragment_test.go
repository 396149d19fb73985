package socks

import (
	"bytes"
	"testing"
	"time"
)

var (
	target4 = []byte{TypeIPv4, 192, 0, 2, 7, 0, 53}
	other4  = []byte{TypeIPv4, 192, 0, 2, 8, 0, 53}
)

// body is a datagram from ATYP onward.
func body(addr []byte, data string) []byte { return append(bytes.Clone(addr), data...) }

func TestFragmentsBecomeADatagramAsRFC1928Says(t *testing.T) {
	type step struct {
		frag    byte
		addr    []byte
		data    string
		after   time.Duration // since the step before
		want    string        // the data of the whole datagram, if there is one
		dropped int
	}
	long := string(make([]byte, 40000))
	for _, c := range []struct {
		what  string
		steps []step
	}{
		{"in order", []step{{frag: 1, data: "a"}, {frag: 2, data: "b"}, {frag: 3 | fragEnd, data: "c", want: "abc"}}},
		{"one that is the whole", []step{{frag: 1 | fragEnd, data: "a", want: "a"}}},
		{"empty ones", []step{{frag: 1}, {frag: 2, data: "b"}, {frag: 3 | fragEnd, want: "b"}}},
		{"two datagrams", []step{
			{frag: 1, data: "a"},
			{frag: 2 | fragEnd, data: "b", want: "ab"},
			{frag: 1, data: "c"},
			{frag: 2 | fragEnd, data: "d", want: "cd"},
		}},
		{"a lower one abandons", []step{
			{frag: 1, data: "a"},
			{frag: 2, data: "b"},
			{frag: 1, data: "c", dropped: 2},
			{frag: 2 | fragEnd, data: "d", want: "cd"},
		}},
		{"a lower one that is not the first", []step{
			{frag: 1, data: "a"},
			{frag: 2, data: "b"},
			{frag: 3, data: "c"},
			{frag: 2, data: "x", dropped: 4},
			{frag: 4 | fragEnd, data: "d", dropped: 1},
		}},
		{"the same first one, different", []step{{frag: 1, data: "a"}, {frag: 1, data: "b", dropped: 1}, {frag: 2 | fragEnd, data: "c", want: "bc"}}},
		{"a copy changes nothing", []step{{frag: 1, data: "a"}, {frag: 1, data: "a"}, {frag: 2, data: "b"}, {frag: 2, data: "b"}, {frag: 3 | fragEnd, data: "c", want: "abc"}}},
		{"a gap", []step{{frag: 1, data: "a"}, {frag: 3 | fragEnd, data: "c", dropped: 2}, {frag: 1 | fragEnd, data: "d", want: "d"}}},
		{"without a start", []step{{frag: 2, data: "b", dropped: 1}, {frag: 3 | fragEnd, data: "c", dropped: 1}}},
		{"position 0 with the end bit", []step{{frag: fragEnd, data: "a", dropped: 1}}},
		{"another destination", []step{{frag: 1, data: "a"}, {frag: 2 | fragEnd, addr: other4, data: "b", dropped: 2}}},
		{"slow, but within the time", []step{{frag: 1, data: "a"}, {frag: 2 | fragEnd, data: "b", after: reassemblyTime - 1, want: "ab"}}},
		{"too slow", []step{{frag: 1, data: "a"}, {frag: 2 | fragEnd, data: "b", after: reassemblyTime, dropped: 2}}},
		{"too slow, then new", []step{{frag: 1, data: "a"}, {frag: 1, data: "b", after: time.Hour, dropped: 1}, {frag: 2 | fragEnd, data: "c", want: "bc"}}},
		{"too large", []step{{frag: 1, data: long}, {frag: 2, data: long, dropped: 2}, {frag: 3 | fragEnd, data: "c", dropped: 1}}},
	} {
		var q fragmentQueue
		now := time.Unix(1000, 0)
		for i, s := range c.steps {
			now = now.Add(s.after)
			addr := s.addr
			if addr == nil {
				addr = target4
			}
			whole, dropped := q.add(s.frag, body(addr, s.data), len(addr), now)
			if dropped != s.dropped {
				t.Errorf("%s, step %d: %d dropped, want %d", c.what, i, dropped, s.dropped)
			}
			if (whole != nil) != (s.want != "") || whole != nil && !bytes.Equal(whole, body(target4, s.want)) {
				t.Errorf("%s, step %d: got %q, want %q", c.what, i, whole, s.want)
			}
			if whole != nil && (!q.empty() || q.size() != 0) {
				t.Errorf("%s, step %d: the queue keeps %d bytes", c.what, i, q.size())
			}
		}
	}
}

func TestAllPositionsOfASequenceCanBeUsed(t *testing.T) {
	var q fragmentQueue
	for position := byte(1); position < fragPosition; position++ {
		if whole, dropped := q.add(position, body(target4, "x"), len(target4), time.Time{}); whole != nil || dropped != 0 {
			t.Fatalf("position %d: %q, %d dropped", position, whole, dropped)
		}
	}
	if _, dropped := q.add(fragPosition, body(target4, "x"), len(target4), time.Time{}); dropped != 0 {
		t.Fatal("position 127 was dropped")
	}
	// There is no position 128: what follows is a new sequence.
	if whole, dropped := q.add(1|fragEnd, body(target4, "y"), len(target4), time.Time{}); dropped != 127 || string(whole[7:]) != "y" {
		t.Errorf("%q, %d dropped", whole, dropped)
	}
}

func TestTheQueueIsTheCallersToExpire(t *testing.T) {
	var q fragmentQueue
	now := time.Unix(1000, 0)
	q.add(1, body(target4, "a"), len(target4), now)
	q.add(2, body(target4, "b"), len(target4), now.Add(time.Second))
	if n := q.expire(now.Add(reassemblyTime - 1)); n != 0 || q.empty() {
		t.Errorf("%d expired early", n)
	}
	if n := q.expire(now.Add(reassemblyTime)); n != 2 || !q.empty() || q.size() != 0 {
		t.Errorf("%d expired, %d bytes kept", n, q.size())
	}
}

// FuzzFragmentQueue reads steps of FRAG, pause and data length, and checks
// against a list of what a sequence must be.
func FuzzFragmentQueue(f *testing.F) {
	f.Add([]byte{1, 0, 3, 2, 0, 3, 0x83, 0, 3})
	f.Add([]byte{1, 0, 3, 1, 0, 3, 0x82, 0, 3})
	f.Add([]byte{1, 0, 3, 3, 0, 3, 0x84, 0, 3})
	f.Add([]byte{1, 0, 3, 2, 60, 3, 0x83, 0, 3})
	f.Add([]byte{1, 0, 0xf5, 2, 0, 1})
	f.Add([]byte{0x81, 0, 0, 0x80, 0, 1, 0xff, 0, 1})
	f.Fuzz(func(t *testing.T, steps []byte) {
		steps = steps[:min(len(steps), 3*200)] // longer ones say nothing new
		var q fragmentQueue
		var model [][]byte // the data of the sequence, by position less one
		var began time.Time
		now := time.Unix(1000, 0)
		in, lost, copies, used := 0, 0, 0, 0
		for i := 0; i+3 <= len(steps); i += 3 {
			frag, pause, size := steps[i], time.Duration(steps[i+1])*time.Second/10, int(steps[i+2])
			now = now.Add(pause)
			data := bytes.Repeat([]byte{byte(i)}, size*300)
			position := int(frag & fragPosition)
			if len(model) > 0 && now.Sub(began) >= reassemblyTime {
				model = nil
			}
			total := len(target4)
			for _, d := range model {
				total += len(d)
			}
			isCopy := position > 0 && position == len(model) && bytes.Equal(model[position-1], data)
			switch {
			case isCopy:
				copies++
			case position == 1 && len(target4)+len(data) <= maxReassembled:
				model, began = [][]byte{data}, now
			case position > 1 && position == len(model)+1 && total+len(data) <= maxReassembled:
				model = append(model, data)
			default:
				model = nil
			}
			in++
			whole, dropped := q.add(frag, body(target4, string(data)), len(target4), now)
			lost += dropped
			if frag&fragEnd != 0 && len(model) > 0 && !isCopy {
				want := append(bytes.Clone(target4), bytes.Join(model, nil)...)
				if !bytes.Equal(whole, want) {
					t.Fatalf("step %d: %d bytes, want %d", i/3, len(whole), len(want))
				}
				used += len(model)
				model = nil
			} else if whole != nil {
				t.Fatalf("step %d: %d bytes out of nowhere", i/3, len(whole))
			}
			if len(q.buf) > maxReassembled || int(q.position) != len(model) {
				t.Fatalf("step %d: %d bytes, position %d, want %d", i/3, len(q.buf), q.position, len(model))
			}
		}
		if held := int(q.position); in != lost+copies+used+held {
			t.Fatalf("%d fragments in, but %d lost, %d copies, %d used, %d held", in, lost, copies, used, held)
		}
	})
}
