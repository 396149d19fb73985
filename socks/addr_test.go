package socks

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

var longName = strings.Repeat("n", 255)

// wireName is a name as it stands on the wire.
func wireName(name string, port uint16) []byte {
	b := append([]byte{TypeName, byte(len(name))}, name...)
	return append(b, byte(port>>8), byte(port))
}

func TestAnAddressOnTheWireIsWhatItSays(t *testing.T) {
	ip := netip.MustParseAddr
	for _, c := range []struct {
		what string
		wire []byte
		want Addr
		text string
	}{
		{"IPv4", []byte{1, 192, 0, 2, 7, 0x1f, 0x90}, Addr{IP: ip("192.0.2.7"), Port: 8080}, "192.0.2.7:8080"},
		{"IPv4 zero", []byte{1, 0, 0, 0, 0, 0, 0}, Addr{IP: ip("0.0.0.0")}, "0.0.0.0:0"},
		{"IPv6", append(append([]byte{4}, ip("2001:db8::7").AsSlice()...), 0, 53), Addr{IP: ip("2001:db8::7"), Port: 53}, "[2001:db8::7]:53"},
		{"IPv4-mapped", append(append([]byte{4}, ip("::ffff:192.0.2.7").AsSlice()...), 0, 53), Addr{IP: ip("192.0.2.7"), Port: 53}, "192.0.2.7:53"},
		{"name", wireName("example.org", 443), Addr{Name: "example.org", Port: 443}, "example.org:443"},
		{"name of one byte", wireName("0", 1), Addr{Name: "0", Port: 1}, "0:1"},
		{"longest name", wireName(longName, 1), Addr{Name: longName, Port: 1}, longName + ":1"},
		{"IPv4 in text", wireName("192.0.2.7", 1), Addr{IP: ip("192.0.2.7"), Port: 1}, "192.0.2.7:1"},
		{"IPv6 in text", wireName("2001:db8::7", 1), Addr{IP: ip("2001:db8::7"), Port: 1}, "[2001:db8::7]:1"},
		{"IPv4-mapped in text", wireName("::ffff:192.0.2.7", 1), Addr{IP: ip("192.0.2.7"), Port: 1}, "192.0.2.7:1"},
		{"IPv6 in brackets", wireName("[2001:db8::7]", 1), Addr{IP: ip("2001:db8::7"), Port: 1}, "[2001:db8::7]:1"},
		{"IPv4-mapped in brackets", wireName("[::ffff:192.0.2.7]", 1), Addr{IP: ip("192.0.2.7"), Port: 1}, "192.0.2.7:1"},
		{"IPv4 with a dot behind it", wireName("192.0.2.7.", 1), Addr{IP: ip("192.0.2.7"), Port: 1}, "192.0.2.7:1"},
		{"IPv6 with a dot behind it", wireName("2001:db8::7.", 1), Addr{Name: "2001:db8::7.", Port: 1}, "[2001:db8::7.]:1"},
		{"a bracket alone", wireName("[192.0.2.7", 1), Addr{Name: "[192.0.2.7", Port: 1}, "[192.0.2.7:1"},
		{"two dots", wireName("192.0.2.7..", 1), Addr{Name: "192.0.2.7..", Port: 1}, "192.0.2.7..:1"},
		{"a zone in brackets", wireName("[fe80::1%eth0]", 1), Addr{Name: "[fe80::1%eth0]", Port: 1}, "[[fe80::1%eth0]]:1"},
		{"a zone is no address of ours", wireName("fe80::1%eth0", 1), Addr{Name: "fe80::1%eth0", Port: 1}, "[fe80::1%eth0]:1"},
	} {
		got, n, err := ParseAddr(append(bytes.Clone(c.wire), "payload"...))
		if err != nil || got != c.want || n != len(c.wire) {
			t.Errorf("%s: ParseAddr = %v, %d, %v, want %v, %d", c.what, got, n, err, c.want, len(c.wire))
		}
		if got.String() != c.text {
			t.Errorf("%s: String = %q, want %q", c.what, got.String(), c.text)
		}
		back, _, err := ParseAddr(AppendAddr(nil, got))
		if err != nil || back != got {
			t.Errorf("%s: written and read again it is %v, %v", c.what, back, err)
		}
	}
}

func TestABrokenAddressIsAnError(t *testing.T) {
	for _, c := range []struct {
		what string
		wire []byte
		want error
	}{
		{"nothing", nil, errShortAddr},
		{"a type alone", []byte{1}, errShortAddr},
		{"IPv4 less a byte", []byte{1, 192, 0, 2, 7, 0}, errShortAddr},
		{"IPv6 less a byte", append([]byte{4}, make([]byte, 17)...), errShortAddr},
		{"name less a byte", wireName("example.org", 1)[:13], errShortAddr},
		{"empty name", []byte{3, 0, 0, 80}, errEmptyName},
		{"type 0", make([]byte, 32), ErrAddrType},
		{"type 2", []byte{2, 1, 2, 3, 4, 5, 6, 7}, ErrAddrType},
	} {
		if _, _, err := ParseAddr(c.wire); !errors.Is(err, c.want) {
			t.Errorf("%s: ParseAddr says %v, want %v", c.what, err, c.want)
		}
		if n, err := AddrLen(c.wire); n != 0 || !errors.Is(err, c.want) {
			t.Errorf("%s: AddrLen says %d, %v, want %v", c.what, n, err, c.want)
		}
	}
}

func TestWhatIsNoAddressIsWrittenAsTenBytesOfAReply(t *testing.T) {
	want := []byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	if got := appendReply(nil, ReplySucceeded, netip.AddrPort{}); !bytes.Equal(got, want) {
		t.Errorf("reply is % x, want % x", got, want)
	}
	mapped := netip.MustParseAddrPort("[::ffff:192.0.2.7]:80")
	if got, want := appendReply(nil, 5, mapped), []byte{5, 5, 0, 1, 192, 0, 2, 7, 0, 80}; !bytes.Equal(got, want) {
		t.Errorf("mapped: reply is % x, want % x", got, want)
	}
}

func TestAnAddressWithBothAnIPAndANameIsItsIPEverywhere(t *testing.T) {
	a := Addr{Name: "example.org", IP: netip.MustParseAddr("192.0.2.7"), Port: 80}
	if got := a.String(); got != "192.0.2.7:80" {
		t.Errorf("String = %q", got)
	}
	if got, want := AppendAddr(nil, a), []byte{1, 192, 0, 2, 7, 0, 80}; !bytes.Equal(got, want) {
		t.Errorf("on the wire % x, want % x", got, want)
	}
}

func TestSplitAddrAllocatesNothing(t *testing.T) {
	wires := [][]byte{{1, 192, 0, 2, 7, 0, 53}, wireName(longName, 1), append([]byte{4}, make([]byte, 18)...)}
	if n := testing.AllocsPerRun(100, func() {
		for _, w := range wires {
			if _, _, _, err := SplitAddr(w); err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzAddr(f *testing.F) {
	f.Add([]byte{1, 192, 0, 2, 7, 0, 53})
	f.Add([]byte{3, 0, 0, 80})
	f.Add(wireName("example.org", 443))
	f.Add(wireName("::ffff:1.2.3.4", 443))
	f.Add(wireName(longName, 443))
	f.Add(append([]byte{4}, make([]byte, 18)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := AddrLen(b)
		ap, name, split, splitErr := SplitAddr(b)
		a, parsed, parseErr := ParseAddr(b)
		if (err == nil) != (splitErr == nil) || (err == nil) != (parseErr == nil) {
			t.Fatalf("AddrLen %v, SplitAddr %v, ParseAddr %v", err, splitErr, parseErr)
		}
		if err != nil {
			return
		}
		if n > len(b) || n > MaxAddrLen || split != n || parsed != n {
			t.Fatalf("lengths %d, %d, %d of %d bytes", n, split, parsed, len(b))
		}
		if a.IP.IsValid() == (a.Name != "") || a.IP.Is4In6() || a.Port != ap.Port() {
			t.Fatalf("ParseAddr = %+v", a)
		}
		if name != nil && !bytes.Equal(name, b[2:n-2]) {
			t.Fatalf("name %q of %q", name, b)
		}
		wire := AppendAddr(nil, a)
		if len(wire) > MaxAddrLen {
			t.Fatalf("%d bytes on the wire", len(wire))
		}
		if back, m, err := ParseAddr(wire); err != nil || back != a || m != len(wire) {
			t.Fatalf("%+v written and read again is %+v, %d, %v", a, back, m, err)
		}
	})
}
