package wire

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"wmproxy/internal/testmain"
)

func TestALoneIPv4DatagramCostsAtMostThirteenBytes(t *testing.T) {
	const addr = 7 // ATYP, IPv4, port
	for _, flow := range []uint64{2, 63, 16_000, 1 << 20} {
		for _, payload := range []int{0, 64, 1200, 1472} {
			if cost := RecordLen(flow, addr+payload) - payload; cost > 13 {
				t.Errorf("flow %d, %d bytes: costs %d bytes, want at most 13", flow, payload, cost)
			}
		}
	}
}

func TestRecordsSurviveTheWire(t *testing.T) {
	var b []byte
	b = append(AppendRecordHeader(b, 2, 5), "hello"...)
	b = append(AppendFragmentHeader(b, 1<<40, 3, 65535, 127, 128), "end"...)
	b = append(AppendFragmentHeader(b, 4, 3, 7, 0, 0), "beg"...)
	b = AppendRecordHeader(b, 0, 0)
	b = append(b, 0xff, 0xff) // padding may hold anything
	if r, _, err := ParseRecord([]byte{0}); err != nil || !r.Padding() {
		t.Errorf("one byte of padding: %+v, %v", r, err)
	}

	want := []Record{
		{Flow: 2, Body: []byte("hello")},
		{Flow: 1 << 40, Body: []byte("end"), Fragment: true, message: 65535, index: 127, count: 128},
		{Flow: 4, Body: []byte("beg"), Fragment: true, message: 7},
	}
	for _, w := range want {
		r, rest, err := ParseRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		if r.Flow != w.Flow || !bytes.Equal(r.Body, w.Body) || r.Fragment != w.Fragment ||
			r.message != w.message || r.index != w.index || r.count != w.count {
			t.Errorf("got %+v, want %+v", r, w)
		}
		b = rest
	}
	r, _, err := ParseRecord(b)
	if err != nil || !r.Padding() {
		t.Errorf("got %+v, %v, want padding", r, err)
	}
}

func TestMalformedRecordsAreRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing":                    {},
		"half a flow":                {0x40},
		"no length":                  {2},
		"body cut short":             {2, 6, 'a', 'b'},
		"fragment header cut short":  {2, 3, 0, 1, 0},
		"count below index":          {2, 3, 0, 1, 5, 3, 'a'},
		"count above index+1":        {2, 3, 0, 1, 5, 9, 'a'},
		"index beyond all fragments": {2, 3, 0, 1, 128, 129, 'a'},
		"length of 2^61":             {2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe},
	} {
		if _, _, err := ParseRecord(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(append(AppendRecordHeader(nil, 2, 5), "hello"...))
	f.Add(append(AppendFragmentHeader(nil, 4, 3, 1, 0, 0), "abc"...))
	f.Add([]byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Reassembler
		defer r.Close()
		for len(b) > 0 {
			rec, rest, err := ParseRecord(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			if rec.Fragment {
				if whole := r.Add(&rec, 0); len(whole) > MaxBody {
					t.Fatalf("reassembled %d bytes", len(whole))
				}
			}
			b = rest
		}
	})
}

// fragments cuts body into n fragments.
func fragments(flow uint64, message uint16, body []byte, n int) []Record {
	var out []Record
	for i := range n {
		r := Record{Flow: flow, Fragment: true, message: message, index: uint8(i), Body: body[i*len(body)/n : (i+1)*len(body)/n]}
		if i == n-1 {
			r.count = uint8(n)
		}
		out = append(out, r)
	}
	return out
}

func TestFragmentsInAnyOrderBecomeTheDatagram(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{2, 1500, 4096, 4097, 65000, MaxBody} {
		for _, n := range []int{2, 3, 57, 128} {
			if n > size {
				continue
			}
			body := make([]byte, size)
			for i := range body {
				body[i] = byte(rng.Uint32())
			}
			fs := fragments(2, 9, body, n)
			for _, order := range []string{"ordered", "shuffled", "reversed"} {
				switch order {
				case "shuffled":
					rng.Shuffle(n, func(i, j int) { fs[i], fs[j] = fs[j], fs[i] })
				case "reversed":
					fs = fragments(2, 9, body, n)
					for i := range n / 2 {
						fs[i], fs[n-1-i] = fs[n-1-i], fs[i]
					}
				}
				var r Reassembler
				for i := range fs {
					whole := r.Add(&fs[i], 0)
					if i < n-1 && whole != nil {
						t.Fatalf("%d bytes in %d, %s: whole after %d", size, n, order, i+1)
					}
					if i == n-1 && !bytes.Equal(whole, body) {
						t.Fatalf("%d bytes in %d, %s: %d bytes came out", size, n, order, len(whole))
					}
				}
				if len(r.parts) != 0 || r.Drops != 0 {
					t.Fatalf("left over: %d parts, %d drops", len(r.parts), r.Drops)
				}
				r.Close()
			}
		}
	}
}

func TestSeveralDatagramsOfOneFlowAreReassembledAtOnce(t *testing.T) {
	var r Reassembler
	defer r.Close()
	a, b := fragments(2, 1, bytes.Repeat([]byte("a"), 3000), 3), fragments(2, 2, bytes.Repeat([]byte("b"), 3000), 3)
	whole := 0
	for i := range a {
		for _, f := range []*Record{&a[i], &b[i]} {
			if r.Add(f, 0) != nil {
				whole++
			}
		}
	}
	if whole != 2 {
		t.Errorf("%d datagrams came out, want 2", whole)
	}
}

func TestARepeatedFragmentChangesNothing(t *testing.T) {
	var r Reassembler
	defer r.Close()
	fs := fragments(2, 1, []byte("abcdef"), 2)
	r.Add(&fs[0], 0)
	r.Add(&fs[0], 0)
	if got := r.Add(&fs[1], 0); string(got) != "abcdef" {
		t.Errorf("got %q", got)
	}
}

func TestContradictoryFragmentsAreGivenUp(t *testing.T) {
	for name, second := range map[string]Record{
		"another end":       {Flow: 2, Fragment: true, message: 1, index: 1, count: 2, Body: []byte("x")},
		"beyond the end":    {Flow: 2, Fragment: true, message: 1, index: 9, Body: []byte("x")},
		"larger than UDP":   {Flow: 2, Fragment: true, message: 1, index: 0, Body: make([]byte, MaxBody)},
		"end before others": {Flow: 2, Fragment: true, message: 1, index: 2, count: 3, Body: []byte("x")},
	} {
		var r Reassembler
		first := Record{Flow: 2, Fragment: true, message: 1, index: 5, count: 6, Body: []byte("y")}
		if name == "end before others" {
			first.count = 0
		}
		r.Add(&first, 0)
		r.Add(&second, 0)
		if len(r.parts) != 0 || r.Drops != 1 {
			t.Errorf("%s: %d parts, %d drops, want 0 and 1", name, len(r.parts), r.Drops)
		}
		r.Close()
	}
}

func TestAFragmentThatNeverArrivesIsForgotten(t *testing.T) {
	var r Reassembler
	defer r.Close()
	fs := fragments(2, 1, []byte("abcdef"), 2)
	r.Add(&fs[0], 0)
	other := fragments(4, 2, []byte("abcdef"), 2)
	r.Add(&other[0], reassemblyTimeout+time.Millisecond)
	if len(r.parts) != 1 || r.Drops != 1 {
		t.Errorf("%d parts, %d drops, want 1 and 1", len(r.parts), r.Drops)
	}
}

func TestReassemblyIsBounded(t *testing.T) {
	var r Reassembler
	defer r.Close()
	for i := range 10 * maxPartials {
		f := Record{Flow: 2, Fragment: true, message: uint16(i), Body: []byte("x")}
		r.Add(&f, 0)
	}
	if len(r.parts) != maxPartials || r.Drops != 9*maxPartials {
		t.Errorf("%d parts, %d drops, want %d and %d", len(r.parts), r.Drops, maxPartials, 9*maxPartials)
	}
}

func TestReassemblyDoesNotAllocate(t *testing.T) {
	var r Reassembler
	defer r.Close()
	fs := fragments(2, 1, make([]byte, 8000), 6)
	n := testing.AllocsPerRun(1000, func() {
		for i := range fs {
			r.Add(&fs[i], 0)
		}
	})
	if n != 0 && !testmain.Race {
		t.Errorf("%v allocations for a datagram in fragments", n)
	}
}

func TestTheCodecsDoNotAllocate(t *testing.T) {
	body := make([]byte, 1200)
	b := make([]byte, 0, 4*len(body))
	for name, pass := range map[string]func() error{
		"record": func() error {
			b = append(AppendRecordHeader(b[:0], 1<<20, len(body)), body...)
			_, _, err := ParseRecord(b)
			return err
		},
		"fragment": func() error {
			b = append(AppendFragmentHeader(b[:0], 1<<20, len(body), 7, 0, 0), body...)
			_, _, err := ParseRecord(b)
			return err
		},
		"probe": func() error {
			p := Probe{ID: 1 << 40, Sent: Counts{1 << 50}, Limit: 1400}
			b = p.Append(b[:0])
			rec, _, err := ParseRecord(b)
			if _, ok := ParseProbe(rec.Body); !ok {
				return errMalformedBundle
			}
			return err
		},
	} {
		var err error
		if n := testing.AllocsPerRun(1000, func() { err = errors.Join(err, pass()) }); n != 0 || err != nil {
			t.Errorf("%s: %v allocations, %v", name, n, err)
		}
	}
}
