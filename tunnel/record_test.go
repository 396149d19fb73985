package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/quic-go/quic-go/quicvarint"
)

func TestALoneIPv4DatagramCostsAtMostThirteenBytes(t *testing.T) {
	const addr = 7 // ATYP, IPv4, port
	for _, flow := range []uint64{2, 63, 16_000, 1 << 20} {
		for _, payload := range []int{0, 64, 1200, 1472} {
			if cost := recordLen(flow, addr+payload) - payload; cost > 13 {
				t.Errorf("flow %d, %d bytes: costs %d bytes, want at most 13", flow, payload, cost)
			}
		}
	}
}

func TestRecordsSurviveTheWire(t *testing.T) {
	var b []byte
	b = append(appendRecordHeader(b, 2, 5), "hello"...)
	b = append(appendFragmentHeader(b, 1<<40, 3, 65535, 127, 128), "end"...)
	b = append(appendFragmentHeader(b, 4, 3, 7, 0, 0), "beg"...)
	b = appendRecordHeader(b, 0, 0)
	b = append(b, 0xff, 0xff) // padding may hold anything
	if r, _, err := parseRecord([]byte{0}); err != nil || !r.padding() {
		t.Errorf("one byte of padding: %+v, %v", r, err)
	}

	want := []record{
		{flow: 2, body: []byte("hello")},
		{flow: 1 << 40, body: []byte("end"), fragment: true, message: 65535, index: 127, count: 128},
		{flow: 4, body: []byte("beg"), fragment: true, message: 7},
	}
	for _, w := range want {
		r, rest, err := parseRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		if r.flow != w.flow || !bytes.Equal(r.body, w.body) || r.fragment != w.fragment ||
			r.message != w.message || r.index != w.index || r.count != w.count {
			t.Errorf("got %+v, want %+v", r, w)
		}
		b = rest
	}
	r, _, err := parseRecord(b)
	if err != nil || !r.padding() {
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
		if _, _, err := parseRecord(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(append(appendRecordHeader(nil, 2, 5), "hello"...))
	f.Add(append(appendFragmentHeader(nil, 4, 3, 1, 0, 0), "abc"...))
	f.Add([]byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r reassembler
		defer r.close()
		for len(b) > 0 {
			rec, rest, err := parseRecord(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			if rec.fragment {
				if whole := r.add(&rec, 0); len(whole) > MaxBody {
					t.Fatalf("reassembled %d bytes", len(whole))
				}
			}
			b = rest
		}
	})
}

// fragments cuts body into n fragments.
func fragments(flow uint64, message uint16, body []byte, n int) []record {
	var out []record
	for i := range n {
		r := record{flow: flow, fragment: true, message: message, index: uint8(i), body: body[i*len(body)/n : (i+1)*len(body)/n]}
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
				var r reassembler
				for i := range fs {
					whole := r.add(&fs[i], 0)
					if i < n-1 && whole != nil {
						t.Fatalf("%d bytes in %d, %s: whole after %d", size, n, order, i+1)
					}
					if i == n-1 && !bytes.Equal(whole, body) {
						t.Fatalf("%d bytes in %d, %s: %d bytes came out", size, n, order, len(whole))
					}
				}
				if len(r.parts) != 0 || r.drops != 0 {
					t.Fatalf("left over: %d parts, %d drops", len(r.parts), r.drops)
				}
				r.close()
			}
		}
	}
}

func TestSeveralDatagramsOfOneFlowAreReassembledAtOnce(t *testing.T) {
	var r reassembler
	defer r.close()
	a, b := fragments(2, 1, bytes.Repeat([]byte("a"), 3000), 3), fragments(2, 2, bytes.Repeat([]byte("b"), 3000), 3)
	whole := 0
	for i := range a {
		for _, f := range []*record{&a[i], &b[i]} {
			if r.add(f, 0) != nil {
				whole++
			}
		}
	}
	if whole != 2 {
		t.Errorf("%d datagrams came out, want 2", whole)
	}
}

func TestARepeatedFragmentChangesNothing(t *testing.T) {
	var r reassembler
	defer r.close()
	fs := fragments(2, 1, []byte("abcdef"), 2)
	r.add(&fs[0], 0)
	r.add(&fs[0], 0)
	if got := r.add(&fs[1], 0); string(got) != "abcdef" {
		t.Errorf("got %q", got)
	}
}

func TestContradictoryFragmentsAreGivenUp(t *testing.T) {
	for name, second := range map[string]record{
		"another end":       {flow: 2, fragment: true, message: 1, index: 1, count: 2, body: []byte("x")},
		"beyond the end":    {flow: 2, fragment: true, message: 1, index: 9, body: []byte("x")},
		"larger than UDP":   {flow: 2, fragment: true, message: 1, index: 0, body: make([]byte, MaxBody)},
		"end before others": {flow: 2, fragment: true, message: 1, index: 2, count: 3, body: []byte("x")},
	} {
		var r reassembler
		first := record{flow: 2, fragment: true, message: 1, index: 5, count: 6, body: []byte("y")}
		if name == "end before others" {
			first.count = 0
		}
		r.add(&first, 0)
		r.add(&second, 0)
		if len(r.parts) != 0 || r.drops != 1 {
			t.Errorf("%s: %d parts, %d drops, want 0 and 1", name, len(r.parts), r.drops)
		}
		r.close()
	}
}

func TestAFragmentThatNeverArrivesIsForgotten(t *testing.T) {
	var r reassembler
	defer r.close()
	fs := fragments(2, 1, []byte("abcdef"), 2)
	r.add(&fs[0], 0)
	other := fragments(4, 2, []byte("abcdef"), 2)
	r.add(&other[0], reassemblyTimeout+time.Millisecond)
	if len(r.parts) != 1 || r.drops != 1 {
		t.Errorf("%d parts, %d drops, want 1 and 1", len(r.parts), r.drops)
	}
}

func TestReassemblyIsBounded(t *testing.T) {
	var r reassembler
	defer r.close()
	for i := range 10 * maxPartials {
		f := record{flow: 2, fragment: true, message: uint16(i), body: []byte("x")}
		r.add(&f, 0)
	}
	if len(r.parts) != maxPartials || r.drops != 9*maxPartials {
		t.Errorf("%d parts, %d drops, want %d and %d", len(r.parts), r.drops, maxPartials, 9*maxPartials)
	}
}

func TestReassemblyDoesNotAllocate(t *testing.T) {
	var r reassembler
	defer r.close()
	fs := fragments(2, 1, make([]byte, 8000), 6)
	n := testing.AllocsPerRun(1000, func() {
		for i := range fs {
			r.add(&fs[i], 0)
		}
	})
	if n != 0 && !raceEnabled {
		t.Errorf("%v allocations for a datagram in fragments", n)
	}
}

func TestTheCodecsDoNotAllocate(t *testing.T) {
	body := make([]byte, 1200)
	b := make([]byte, 0, 4*len(body))
	stream := quicvarint.Append(nil, uint64(len(body)))
	stream = append(stream, body...)
	stream = append(stream, stream...)
	var source bytes.Reader
	var bundles bundleReader
	dst := make([][]byte, receiveBatch)
	for name, pass := range map[string]func() error{
		"record": func() error {
			b = append(appendRecordHeader(b[:0], 1<<20, len(body)), body...)
			_, _, err := parseRecord(b)
			return err
		},
		"fragment": func() error {
			b = append(appendFragmentHeader(b[:0], 1<<20, len(body), 7, 0, 0), body...)
			_, _, err := parseRecord(b)
			return err
		},
		"probe": func() error {
			p := probe{id: 1 << 40, sent: counts{1 << 50}, limit: 1400}
			b = p.append(b[:0])
			rec, _, err := parseRecord(b)
			if _, ok := parseProbe(rec.body); !ok {
				return errMalformedBundle
			}
			return err
		},
		"bundles of yamux": func() error {
			source.Reset(stream)
			n, err := bundles.next(&source, dst)
			if err == nil && n != 2 {
				return fmt.Errorf("%d bundles of 2", n)
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
