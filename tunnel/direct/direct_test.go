package direct

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var allSuites = []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}

var peerID = ConnectionID{0: 9, 16: 8}

// pair returns the client's sealer and the server's opener.
func pair(t testing.TB, suite uint16) (*Sealer, *Opener) {
	t.Helper()
	secret := bytes.Repeat([]byte{3}, SecretLen)
	s, _, err := New(suite, secret, true, peerID)
	if err != nil {
		t.Fatal(err)
	}
	_, o, err := New(suite, secret, false, ConnectionID{})
	if err != nil {
		t.Fatal(err)
	}
	return s, o
}

func seal(t testing.TB, s *Sealer, body string) []byte {
	t.Helper()
	p, _, err := s.Seal(nil, 77, nil, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// open opens a copy.
func open(o *Opener, packet []byte) (Packet, error) { return o.Open(slices.Clone(packet)) }

func mustOpen(t testing.TB, o *Opener, packet []byte, want string) {
	t.Helper()
	if p, err := open(o, packet); err != nil || string(p.Frames) != want {
		t.Fatalf("opened %q, %v, want %q", p.Frames, err, want)
	}
}

func TestPacketsOpenAsTheyWereSealed(t *testing.T) {
	for _, suite := range allSuites {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			s, o := pair(t, suite)
			for i := range 100 {
				head, body := bytes.Repeat([]byte{1}, i%3+1), bytes.Repeat([]byte{2}, i*14)
				train := []byte("train")
				packet, number, err := s.Seal(train, uint32(i), head, body)
				if err != nil {
					t.Fatal(err)
				}
				packet = packet[len(train):]
				if len(packet) != Overhead+len(head)+len(body) || packet[0]&0xc0 != fixedBit || ConnectionID(packet[1:]) != peerID {
					t.Fatalf("packet %d of %d bytes has another shape: %x", i, len(packet), packet)
				}
				got, err := o.Open(packet)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(Packet{Number: number, SendTime: uint32(i), Frames: append(head, body...)}, got); diff != "" {
					t.Fatal(diff)
				}
			}
		})
	}
}

func TestBodyInItsPlaceIsSealedInPlace(t *testing.T) {
	s, o := pair(t, tls.TLS_AES_128_GCM_SHA256)
	head := []byte{byte(FrameDatagram)}
	buf := make([]byte, 100)
	body := buf[Overhead-tagLen+len(head):][:6]
	copy(body, "bundle")
	packet, _, err := s.Seal(buf[:0], 0, head, body)
	if err != nil || &packet[0] != &buf[0] {
		t.Fatalf("sealed elsewhere, or %v", err)
	}
	mustOpen(t, o, packet, string(head)+"bundle")
}

func TestForgedAndReplayedPacketsChangeNothing(t *testing.T) {
	s, o := pair(t, tls.TLS_AES_128_GCM_SHA256)
	first := seal(t, s, "first")
	mustOpen(t, o, first, "first")
	next := seal(t, s, "next")
	state := func() any { return *o.withoutCounts() }
	before := state()
	for i := range len(next) * 8 {
		forged := slices.Clone(next)
		forged[i/8] ^= 1 << (i % 8)
		if _, err := o.Open(forged); !errors.Is(err, ErrAuthentication) {
			t.Fatalf("bit %d turned: %v", i, err)
		}
	}
	for n := range next {
		if _, err := open(o, next[:n]); !errors.Is(err, ErrAuthentication) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := open(o, first); !errors.Is(err, ErrDuplicate) {
		t.Fatalf("replayed: %v", err)
	}
	if state() != before {
		t.Error("the state changed")
	}
	mustOpen(t, o, next, "next")
	want := Counts{Packets: 2, Bytes: uint64(len(first) + len(next)), Duplicates: 1, Failed: uint64(len(next) * 9)}
	if diff := cmp.Diff(want, o.Counts()); diff != "" {
		t.Error(diff)
	}
}

// withoutCounts returns a copy that can be compared.
func (o *Opener) withoutCounts() *Opener {
	c := *o
	c.counts = Counts{}
	return &c
}

func TestPacketWithReservedBitsIsRefused(t *testing.T) {
	for _, bits := range []byte{0x08, 0x10} {
		s, o := pair(t, tls.TLS_AES_128_GCM_SHA256)
		header := append([]byte{fixedBit | numberBits | bits}, peerID[:]...)
		header = append(header, 0, 0, 0, 0)
		packet := s.keys.aead.Seal(header, s.keys.nonceOf(0), []byte("0000frames"), header)
		protectHeader(packet, s.hp)
		if _, err := o.Open(packet); !errors.Is(err, ErrAuthentication) {
			t.Errorf("bits %#x: %v", bits, err)
		}
	}
}

// Several updates over a path that loses and reorders: every packet that arrives opens once.
func TestKeyUpdatesSurviveLossAndReordering(t *testing.T) {
	for _, suite := range allSuites {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			s, o := pair(t, suite)
			random := rand.New(rand.NewPCG(1, 2))
			var waiting [][]byte
			sent := 0
			for i := range 5000 {
				if i%250 == 249 {
					s.sealed = updateAfter
				}
				waiting = append(waiting, seal(t, s, fmt.Sprint(i)))
				if random.IntN(10) < 3 {
					waiting = waiting[:len(waiting)-1] // lost
				}
				for len(waiting) > 20 {
					k := random.IntN(len(waiting))
					if _, err := open(o, waiting[k]); err != nil {
						t.Fatalf("packet %d: %v", i, err)
					}
					if _, err := open(o, waiting[k]); !errors.Is(err, ErrDuplicate) {
						t.Fatalf("packet %d again: %v", i, err)
					}
					waiting = slices.Delete(waiting, k, k+1)
					sent++
				}
				s.Confirm(o.Generation())
			}
			if s.generation < 15 || o.Generation()+1 < s.generation || o.Counts().Packets != uint64(sent) {
				t.Errorf("generation %d sent, %d opened; counts %+v of %d", s.generation, o.Generation(), o.Counts(), sent)
			}
		})
	}
}

func TestUpdateWaitsForConfirmation(t *testing.T) {
	s, _ := pair(t, tls.TLS_AES_128_GCM_SHA256)
	s.sealed = updateAfter
	seal(t, s, "a")
	s.Confirm(1) // not yet sent
	seal(t, s, "b")
	if s.generation != 0 {
		t.Fatal("updated without confirmation")
	}
	s.Confirm(0)
	seal(t, s, "c")
	s.sealed = updateAfter
	seal(t, s, "d")
	if s.generation != 1 || s.number != 4 {
		t.Errorf("generation %d, number %d, want 1, 4", s.generation, s.number)
	}
}

func TestSealerEndsAtItsLimits(t *testing.T) {
	s, o := pair(t, tls.TLS_AES_128_GCM_SHA256)
	s.sealed = maxSealed - 1
	seal(t, s, "last")
	if _, _, err := s.Seal(nil, 0, nil, []byte("more")); !errors.Is(err, ErrKeyLimit) {
		t.Errorf("beyond the limit of a generation: %v", err)
	}
	s, _ = pair(t, tls.TLS_AES_128_GCM_SHA256)
	s.number, o.window.end = maxNumber, maxNumber
	mustOpen(t, o, seal(t, s, "last"), "last")
	if _, _, err := s.Seal(nil, 0, nil, []byte("more")); !errors.Is(err, ErrKeyLimit) {
		t.Errorf("beyond the last number: %v", err)
	}
}

func TestOpenerEndsAtItsLimit(t *testing.T) {
	s, o := pair(t, tls.TLS_CHACHA20_POLY1305_SHA256)
	packet := seal(t, s, "a")
	o.counts.Failed = maxFailed - 1
	if _, err := o.Open(make([]byte, 100)); !errors.Is(err, ErrAuthentication) {
		t.Error(err)
	}
	if _, err := open(o, packet); !errors.Is(err, ErrKeyLimit) {
		t.Errorf("beyond the limit: %v", err)
	}
}

// The keys of both directions and of all generations differ, and within one a nonce is the number's.
func TestNoncesNeverRepeat(t *testing.T) {
	secret := bytes.Repeat([]byte{3}, SecretLen)
	type use struct {
		secret string
		nonce  [ivLen]byte
	}
	seen := map[use]bool{}
	numbers := map[uint64]bool{}
	for _, client := range []bool{true, false} {
		clear(numbers)
		s, _, err := New(tls.TLS_AES_128_GCM_SHA256, secret, client, peerID)
		if err != nil {
			t.Fatal(err)
		}
		for _, start := range []uint64{0, 1<<32 - 50, 1<<33 - 50, 1<<62 - 200} {
			s.number = start
			for range 100 {
				_, number, err := s.Seal(nil, 0, nil, []byte("x"))
				if err != nil {
					t.Fatal(err)
				}
				u := use{string(s.keys.secret), s.keys.nonce}
				if seen[u] || numbers[number] {
					t.Fatalf("number %d: a nonce or number repeats", number)
				}
				seen[u], numbers[number] = true, true
				if number%7 == 0 {
					s.sealed = updateAfter
					s.Confirm(s.generation)
				}
			}
		}
		if s.generation < 50 {
			t.Errorf("%d generations", s.generation)
		}
	}
}

func TestNumbersAreDecodedBeyond32Bits(t *testing.T) {
	s, o := pair(t, tls.TLS_AES_128_GCM_SHA256)
	s.number, o.window.end = 1<<32-100, 1<<32-100
	var late []byte
	for i := range 200 {
		packet, number, _ := s.Seal(nil, 0, nil, []byte("x"))
		if i == 50 {
			late = packet
			continue
		}
		if p, err := o.Open(packet); err != nil || p.Number != number {
			t.Fatalf("number %d: %d, %v", number, p.Number, err)
		}
	}
	mustOpen(t, o, late, "x")

	const half = 1 << 31
	for _, c := range []struct{ expected, number uint64 }{
		{0, 0},
		{0, half - 1},
		{1 << 32, 1<<32 - 1},
		{1 << 32, half + 1},
		{1 << 32, 1<<32 + half},
		{1<<40 + half, 1<<40 + 1},
		{1<<62 - 5, 1<<62 - 1},
		{1<<62 - 1, 1<<62 - half},
		{1<<62 - 5, 1<<62 - 1<<32 + 10},
	} {
		packet := make([]byte, headerLen)
		for i := range numberLen {
			packet[numberOffset+i] = byte(c.number >> (24 - 8*i))
		}
		if got := decodeNumber(packet, c.expected); got != c.number {
			t.Errorf("expected %#x: got %#x, want %#x", c.expected, got, c.number)
		}
	}
}

func TestWindowForgetsNothingTooEarly(t *testing.T) {
	if windowSize < 4096 {
		t.Fatalf("a window of %d", windowSize)
	}
	random := rand.New(rand.NewPCG(3, 4))
	var w window
	seen := map[uint64]bool{}
	at := uint64(0)
	for range 100_000 {
		switch random.IntN(200) {
		case 0:
			at += windowSize + uint64(random.IntN(3*windowSize))
		case 1, 2, 3:
			at += uint64(random.IntN(1000))
		default:
			at++
		}
		n := at - min(at, uint64(random.IntN(windowSize+100))*uint64(random.IntN(2)))
		want := seen[n] || n < w.end && w.end-n > windowSize
		if got := w.has(n); got != want {
			t.Fatalf("end %d, number %d: has %v, want %v", w.end, n, got, want)
		}
		if !want {
			w.add(n)
			seen[n] = true
		}
	}
	// The edges.
	w = window{}
	w.add(windowSize)
	if w.has(1) || !w.has(0) || w.has(windowSize+1) || !w.has(windowSize) {
		t.Error("the window's edges are elsewhere")
	}
}

func TestOtherEndsCannotOpen(t *testing.T) {
	s, _ := pair(t, tls.TLS_AES_128_GCM_SHA256)
	_, mirrored, _ := New(tls.TLS_AES_128_GCM_SHA256, bytes.Repeat([]byte{3}, SecretLen), true, peerID)
	_, other, _ := New(tls.TLS_AES_128_GCM_SHA256, bytes.Repeat([]byte{4}, SecretLen), false, peerID)
	for _, o := range []*Opener{mirrored, other} {
		if _, err := open(o, seal(t, s, "x")); !errors.Is(err, ErrAuthentication) {
			t.Error(err)
		}
	}
	if _, _, err := New(tls.TLS_AES_128_GCM_SHA256, nil, true, peerID); err == nil {
		t.Error("no error without a secret")
	}
	if _, _, err := New(tls.TLS_RSA_WITH_AES_128_CBC_SHA, make([]byte, SecretLen), true, peerID); err == nil {
		t.Error("no error for a suite of TLS 1.2")
	}
}

func TestSealAndOpenDoNotAllocate(t *testing.T) {
	for _, suite := range allSuites {
		s, o := pair(t, suite)
		head, body, buf := []byte{byte(FrameDatagram)}, make([]byte, 1200), make([]byte, 0, 1500)
		if n := testing.AllocsPerRun(1000, func() {
			packet, _, err := s.Seal(buf, 1, head, body)
			if err != nil {
				t.Fatal(err)
			}
			p, err := o.Open(packet)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := ParseFrame(p.Frames); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", tls.CipherSuiteName(suite), n)
		}
	}
}

func TestStatelessResetIsRecognized(t *testing.T) {
	token := [TokenLen]byte{1, 2, 15: 3}
	reset := append(bytes.Repeat([]byte{0x41}, 5), token[:]...)
	if !IsStatelessReset(reset, token) {
		t.Error("a stateless reset is not recognized")
	}
	wrong := slices.Clone(reset)
	wrong[20] ^= 1
	long := slices.Clone(reset)
	long[0] |= longHeader
	for name, b := range map[string][]byte{"wrong token": wrong, "long header": long, "short": reset[1:], "empty": nil} {
		if IsStatelessReset(b, token) {
			t.Errorf("%s: taken for a stateless reset", name)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s, _ := pair(f, tls.TLS_AES_128_GCM_SHA256)
	f.Add(seal(f, s, "a seed"))
	f.Add(make([]byte, Overhead+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, o := pair(t, tls.TLS_AES_128_GCM_SHA256)
		before := *o.withoutCounts()
		p, err := open(o, b)
		if err != nil && *o.withoutCounts() != before {
			t.Error("a packet that does not open changed the state")
		}
		if err == nil && string(p.Frames) != "a seed" {
			t.Errorf("opened %x", p.Frames)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	benchmark(b, func(b *testing.B, s *Sealer, _ *Opener, body []byte) {
		buf := make([]byte, 0, 2000)
		for b.Loop() {
			s.sealed = 0
			if _, _, err := s.Seal(buf, 0, []byte{byte(FrameDatagram)}, body); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkOpen includes a copy of the packet, which opens in place, and the counter set back.
func BenchmarkOpen(b *testing.B) {
	benchmark(b, func(b *testing.B, s *Sealer, o *Opener, body []byte) {
		packet, _, _ := s.Seal(nil, 0, []byte{byte(FrameDatagram)}, body)
		buf := make([]byte, len(packet))
		for b.Loop() {
			copy(buf, packet)
			o.window.bits[0], o.window.end = 0, 0
			if _, err := o.Open(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func benchmark(b *testing.B, run func(*testing.B, *Sealer, *Opener, []byte)) {
	for _, suite := range allSuites {
		for _, size := range []int{64, 160, 1200} {
			b.Run(fmt.Sprintf("%s/%d", tls.CipherSuiteName(suite), size), func(b *testing.B) {
				s, o := pair(b, suite)
				b.ReportAllocs()
				run(b, s, o, make([]byte, size))
			})
		}
	}
}
