package bench

import (
	"bytes"
	"net/netip"
	"testing"

	"wmproxy/socks"
)

func TestStampSurvivesTheWire(t *testing.T) {
	want := stamp{run: 0xfedcba98, index: 59_999, slot: MaxWindow - 1, sequence: 1<<63 + 5, sent: 1<<62 + 7}
	var b [MinSize]byte
	want.put(b[:])
	if got, ok := readStamp(b[:]); !ok || got != want {
		t.Errorf("got %+v %v", got, ok)
	}
	if _, ok := readStamp(b[:MinSize-1]); ok {
		t.Error("a short payload has a stamp")
	}
}

func TestPayloadIsFoundInDatagram(t *testing.T) {
	payload := []byte("payload")
	v4 := socks.Addr{IP: netip.MustParseAddr("192.0.2.1"), Port: 7}
	for _, test := range []struct {
		name string
		b    []byte
		want []byte // nil if there is none
	}{
		{"IPv4", append(udpHeader(v4), payload...), payload},
		{"IPv6", append(udpHeader(socks.Addr{IP: netip.MustParseAddr("2001:db8::1"), Port: 7}), payload...), payload},
		{"a name", append(udpHeader(socks.Addr{Name: "a.example", Port: 7}), payload...), payload},
		{"no payload", udpHeader(v4), []byte{}},
		{"RSV is ignored", append([]byte{1, 2, 0}, append(udpHeader(v4)[3:], payload...)...), payload},
		{"a fragment", append([]byte{0, 0, 1}, append(udpHeader(v4)[3:], payload...)...), nil},
		{"cut in the address", udpHeader(v4)[:8], nil},
		{"cut before the address", []byte{0, 0}, nil},
		{"empty", nil, nil},
		{"unknown type", []byte{0, 0, 0, 9, 1, 2, 3, 4, 5, 6}, nil},
	} {
		got := payloadOf(test.b)
		if (got == nil) != (test.want == nil) || !bytes.Equal(got, test.want) {
			t.Errorf("%s: got %q", test.name, got)
		}
	}
}

func FuzzPayload(f *testing.F) {
	f.Add(append(udpHeader(socks.Addr{IP: netip.MustParseAddr("192.0.2.1"), Port: 7}), make([]byte, MinSize)...))
	f.Add(append(udpHeader(socks.Addr{Name: "a", Port: 7}), make([]byte, MinSize-1)...))
	f.Add([]byte{0, 0, 0, 3, 255})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		body := payloadOf(b)
		if len(body) > len(b) {
			t.Fatal("the payload is longer than the datagram")
		}
		s, ok := readStamp(body)
		if !ok {
			return
		}
		again := make([]byte, MinSize)
		s.put(again)
		if !bytes.Equal(again, body[:MinSize]) {
			t.Fatalf("%x was read as %+v", body[:MinSize], s)
		}
	})
}

func TestFillerIsReproducible(t *testing.T) {
	a, b := filler(1200), filler(1200)
	if !bytes.Equal(a, b) || len(a) != 1200-MinSize || bytes.Count(a, []byte{0}) > 50 {
		t.Errorf("%d bytes, %d of them zero", len(a), bytes.Count(a, []byte{0}))
	}
	if len(filler(MinSize)) != 0 {
		t.Error("the smallest datagram has a filler")
	}
}
