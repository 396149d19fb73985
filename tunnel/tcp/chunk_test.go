package tcp

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
)

func TestChunkHeadersAreReadAsWritten(t *testing.T) {
	for n := range maxChunk + 1 {
		b := appendChunkHeader(nil, n)
		if len(b) > carrier.Headroom {
			t.Fatalf("the header of %d takes %d bytes", n, len(b))
		}
		if !bytes.Equal(b, quicvarint.Append(nil, uint64(n))) {
			t.Fatalf("%d is written as %x, which is no QUIC varint of it", n, b)
		}
		for cut := range len(b) {
			if _, size, err := parseChunkHeader(b[:cut]); size != 0 || err != nil {
				t.Fatalf("%x cut to %d bytes: size %d, %v", b, cut, size, err)
			}
		}
		got, size, err := parseChunkHeader(append(b, 0xff))
		if got != n || size != len(b) || err != nil {
			t.Fatalf("%x: %d in %d bytes, %v", b, got, size, err)
		}
	}
}

func TestChunkHeadersOutOfBoundsAreRefused(t *testing.T) {
	for _, b := range [][]byte{{0x80, 2, 0, 1}, {0x80, 0xff, 0xff, 0xff}, {0xbf, 0, 0, 0}, {0xc0}, {0xff, 0xff}} {
		if _, _, err := parseChunkHeader(b); !errors.Is(err, errChunkTooLong) {
			t.Errorf("%x: %v", b, err)
		}
	}
}

func TestChunksComeOutWholeHoweverTheyArrive(t *testing.T) {
	var wire, want []byte
	for i, n := range []int{1, 63, 64, maxChunk, 1, 1, carrier.MaxWrite, carrier.SmallWrite, 300, carrier.SmallWrite, 9000} {
		b := make([]byte, n)
		carriertest.Numbered(b, i)
		wire = append(appendChunkHeader(wire, n), b...)
		want = append(want, b...)
	}
	wire = append(append(wire, 0), "not any more"...)
	for _, size := range []int{1, 2, 3, 64, 1000, carrier.SmallWrite, maxChunk, maxChunk + 1, len(wire)} {
		var c chunkParser
		var got []byte
		var err error
		for in := wire; err == nil; {
			if len(in) == 0 {
				t.Fatalf("%d bytes at a time: no end", size)
			}
			b := bytes.Clone(in[:min(size, len(in))])
			in = in[len(b):]
			var n int
			n, err = c.strip(b)
			got = append(got, b[:n]...)
		}
		if err != io.EOF || !bytes.Equal(got, want) {
			t.Errorf("%d bytes at a time: %d of %d, %v", size, len(got), len(want), err)
		}
	}
}

// A reader of yamux's asks for what the parser has room for.
func TestALongChunkArrivesWhereItIsToBe(t *testing.T) {
	content := make([]byte, carrier.MaxWrite)
	carriertest.Numbered(content, 3)
	for _, step := range []struct{ chunk, reads int }{
		{carrier.SmallWrite, 3}, // the header as one byte and the rest of it, and all
		{carrier.MaxWrite, 3},
		{carrier.SmallWrite / 2, 3},
		{100, 3},
	} {
		wire := append(appendChunkHeader(nil, step.chunk), content[:step.chunk]...)
		var c chunkParser
		p := make([]byte, carrier.MaxWrite)
		reads, n := 0, 0
		for n == 0 {
			raw := copy(c.room(p), wire)
			wire = wire[raw:]
			reads++
			var err error
			if n, err = c.strip(p[:raw]); err != nil {
				t.Fatal(err)
			}
			if n > 0 && n != raw {
				t.Errorf("a chunk of %d is moved by %d bytes", step.chunk, raw-n)
			}
		}
		if reads != step.reads || !bytes.Equal(p[:n], content[:step.chunk]) {
			t.Errorf("a chunk of %d takes %d reads, want %d, and %d bytes arrive", step.chunk, reads, step.reads, n)
		}
	}
}

func TestShortChunksAreReadTogether(t *testing.T) {
	var wire []byte
	const chunks = 50
	for i := range chunks {
		wire = append(appendChunkHeader(wire, 100), bytes.Repeat([]byte{byte(i)}, 100)...)
	}
	var c chunkParser
	p := make([]byte, carrier.SmallWrite)
	for reads := 1; ; reads++ {
		raw := copy(c.room(p), wire)
		wire = wire[raw:]
		n, err := c.strip(p[:raw])
		if err != nil || reads > 3 {
			t.Fatalf("%v after %d reads", err, reads)
		}
		if n > 0 {
			if n != chunks*100 {
				t.Errorf("%d bytes of %d at once", n, chunks*100)
			}
			return
		}
	}
}

func FuzzChunks(f *testing.F) {
	f.Add([]byte{1, 7, 2, 8, 9, 0}, byte(1))
	f.Add([]byte{0x40, 64, 1}, byte(1))
	f.Add([]byte{1, 7, 0x80, 2, 0, 1}, byte(2))
	f.Fuzz(func(t *testing.T, wire []byte, size byte) {
		var whole, cut chunkParser
		all := bytes.Clone(wire)
		n, err := whole.strip(all)
		if n > len(wire) {
			t.Fatalf("%d bytes of %d", n, len(wire))
		}
		var got []byte
		var cutErr error
		for in := wire; len(in) > 0 && cutErr == nil; {
			b := bytes.Clone(in[:min(1+int(size), len(in))])
			in = in[len(b):]
			var k int
			k, cutErr = cut.strip(b)
			got = append(got, b[:k]...)
		}
		if !bytes.Equal(got, all[:n]) || err != cutErr {
			t.Fatalf("% x in pieces of %d: % x, %v; at once: % x, %v", wire, 1+int(size), got, cutErr, all[:n], err)
		}
	})
}

func FuzzChunkHeader(f *testing.F) {
	for _, b := range [][]byte{nil, {0}, {63}, {0x40, 64}, {0x7f, 0xfc}, {0x7f, 0xff}, {0x80, 2, 0, 0}, {0x80, 2, 0, 1}, {0xc0}} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, size, err := parseChunkHeader(b)
		if err != nil {
			return
		}
		if n < 0 || n > maxChunk || size < 0 || size > min(len(b), carrier.Headroom) {
			t.Fatalf("%x: %d in %d bytes", b, n, size)
		}
	})
}

func TestSignalsAreReadAsWritten(t *testing.T) {
	for _, s := range []signal{
		{kind: signalClose},
		{kind: signalClose, code: carrier.CodeAuth, reason: "wrong token"},
		{kind: signalClose, code: 1 << 60, reason: string(bytes.Repeat([]byte{'x'}, carrier.MaxReason))},
		{kind: signalReset, stream: 7, code: carrier.CodeLimit},
		{kind: signalReset, stream: 1<<32 - 1, code: 1 << 61},
	} {
		b := appendSignal(nil, s)
		if len(b) > maxSignal {
			t.Errorf("%+v takes %d bytes, more than maxSignal", s, len(b))
		}
		for cut := range len(b) {
			if _, size, err := parseSignal(b[:cut]); size != 0 || err != nil {
				t.Fatalf("%+v cut to %d bytes: size %d, %v", s, cut, size, err)
			}
		}
		got, size, err := parseSignal(append(b, 1))
		if got != s || size != len(b) || err != nil {
			t.Errorf("%+v became %+v, size %d, %v", s, got, size, err)
		}
	}
}

// longestSignal has its varints in eight bytes each, which RFC 9000 section 16 allows.
func longestSignal() []byte {
	b := append([]byte{signalClose}, quicvarint.AppendWithLen(nil, uint64(carrier.CodeAuth), 8)...)
	b = quicvarint.AppendWithLen(b, carrier.MaxReason, 8)
	return append(b, make([]byte, carrier.MaxReason)...)
}

// A reader with less room would spin: yamux returns at once where there is none.
func TestTheLongestSignalHasRoom(t *testing.T) {
	b := longestSignal()
	if len(b) > maxSignal {
		t.Fatalf("%d bytes, more than %d", len(b), maxSignal)
	}
	if s, size, err := parseSignal(b); s.code != carrier.CodeAuth || size != len(b) || err != nil {
		t.Errorf("got %+v, %d, %v", s, size, err)
	}
}

func FuzzSignal(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendSignal(nil, signal{kind: signalClose, code: 3, reason: "version"}))
	f.Add(appendSignal(nil, signal{kind: signalReset, stream: 9, code: 1}))
	f.Add([]byte{0, 0, 0x42, 1})
	f.Add(longestSignal())
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, size, err := parseSignal(b)
		if err != nil || size == 0 {
			if err == nil && len(b) >= maxSignal {
				t.Fatalf("%d bytes hold no whole signal", len(b))
			}
			return
		}
		if size > len(b) || len(s.reason) > carrier.MaxReason {
			t.Fatalf("size %d of %d, reason of %d", size, len(b), len(s.reason))
		}
		again, _, err := parseSignal(appendSignal(nil, s))
		if again != s || err != nil {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	})
}

func TestBundlesComeOutWholeHoweverTheyArrive(t *testing.T) {
	var wire []byte
	var want [][]byte
	for i, n := range []int{1, 63, 64, 5000, carrier.MaxBundleSize, 1, carrier.MaxBundleSize, carrier.MaxBundleSize - 1, 100} {
		b := make([]byte, n)
		carriertest.Numbered(b, i)
		want = append(want, b)
		wire = append(quicvarint.Append(wire, uint64(n)), b...)
	}
	for name, src := range map[string]io.Reader{
		"all at once":     bytes.NewReader(wire),
		"byte by byte":    iotest.OneByteReader(bytes.NewReader(wire)),
		"halves":          iotest.HalfReader(bytes.NewReader(wire)),
		"end with a byte": iotest.DataErrReader(bytes.NewReader(wire)),
	} {
		var br bundleReader
		dst := make([][]byte, 3)
		got := 0
		for got < len(want) {
			n, err := br.next(src, dst)
			if err != nil {
				t.Fatalf("%s: after %d: %v", name, got, err)
			}
			for _, b := range dst[:n] {
				if !bytes.Equal(b, want[got]) {
					t.Fatalf("%s: bundle %d differs", name, got)
				}
				clear(b)
				got++
			}
		}
		if _, err := br.next(src, dst); err != io.EOF {
			t.Errorf("%s: at the end: %v", name, err)
		}
		if len(br.buf) > bundleBuffer {
			t.Errorf("%s: a buffer of %d bytes", name, len(br.buf))
		}
	}
}

func FuzzBundles(f *testing.F) {
	f.Add([]byte{1, 7, 2, 8, 9}, byte(1))
	f.Add([]byte{0}, byte(2))
	f.Add([]byte{0x80, 0, 0x40, 1}, byte(3))
	f.Add([]byte{0x40, 1, 7, 0x40}, byte(4))
	f.Fuzz(func(t *testing.T, wire []byte, slots byte) {
		var br bundleReader
		src := bytes.NewReader(wire)
		dst := make([][]byte, 1+slots%8)
		total := 0
		for {
			n, err := br.next(src, dst)
			for _, b := range dst[:n] {
				if len(b) == 0 || len(b) > carrier.MaxBundleSize {
					t.Fatalf("a bundle of %d bytes", len(b))
				}
				total += len(b) + 1
			}
			if total > len(wire) {
				t.Fatalf("%d bytes out of %d", total, len(wire))
			}
			if err != nil {
				return
			}
		}
	})
}

func TestAChunkParserThatFailedMayBeAskedAgain(t *testing.T) {
	var c chunkParser
	for range 3 {
		if n, err := c.strip([]byte{0xc0, 0xff, 1, 2}); n != 0 || !errors.Is(err, errChunkTooLong) {
			t.Errorf("%d, %v", n, err)
		}
	}
}

func TestReadingBundlesDoesNotAllocate(t *testing.T) {
	stream := quicvarint.Append(nil, 1200)
	stream = append(stream, make([]byte, 1200)...)
	stream = append(stream, stream...)
	var source bytes.Reader
	var bundles bundleReader
	dst := make([][]byte, 8)
	if n := testing.AllocsPerRun(1000, func() {
		source.Reset(stream)
		if n, err := bundles.next(&source, dst); err != nil || n != 2 {
			t.Errorf("%d bundles, %v, want 2", n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
