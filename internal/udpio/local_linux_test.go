package udpio

import (
	"bytes"
	"math"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A connected socket takes datagrams from the address that it sends to alone. On Linux
// all of 127.0.0.0/8 are addresses of the host.
func TestAnswersLeaveFromTheAddressThatWasSentTo(t *testing.T) {
	for _, c := range []struct{ bound, to string }{
		{"[::]:0", "127.0.0.2"},
		{"[::]:0", "127.0.0.3"},
		{"[::]:0", "::1"},
		{"0.0.0.0:0", "127.0.0.2"},
		{"127.0.0.2:0", "127.0.0.2"},
	} {
		t.Run(c.bound+" "+c.to, func(t *testing.T) {
			s, err := Listen(netip.MustParseAddrPort(c.bound), Config{TellLocal: true})
			if err != nil {
				t.Skip(err)
			}
			defer s.Close()
			s.Start(func(ms []Message) {
				// A train, one of other sizes, and a plain one.
				one, two := ms[0], ms[0]
				two.Head, two.Body = []byte("longer than "), ms[0].Body
				_, _ = s.Write([]Message{one, one, one, two, two, one})
			})
			to := netip.AddrPortFrom(netip.MustParseAddr(c.to), s.LocalAddr().Port())
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
			if err != nil {
				t.Skip(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("payload")); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			b := make([]byte, 100)
			for i, want := range []string{"payload", "payload", "payload", "longer than payload", "longer than payload", "payload"} {
				n, err := conn.Read(b)
				if err != nil || string(b[:n]) != want {
					t.Fatalf("answer %d: %q, %v, want %q", i, b[:n], err, want)
				}
			}
		})
	}
}

// A device without UDP_SEGMENT has the first of a run sent by itself: from the same address.
func TestRefusedSegmentationKeepsTheLocalAddress(t *testing.T) {
	var w writer
	w.ctrls[0].putLocal(w.ctrls[0].putSegment(100), netip.MustParseAddr("127.0.0.2"), unix.AF_INET6)
	w.runs[0] = run{local: unix.CmsgSpace(2), end: unix.CmsgSpace(2) + unix.CmsgSpace(unix.SizeofInet6Pktinfo)}
	w.ctrls[0].attach(&w.hdrs[0].Hdr, w.runs[0].local, w.runs[0].end)
	left := w.ctrls[0].header(unix.CmsgSpace(2))
	if left.Type != unix.IPV6_PKTINFO || unsafe.Pointer(left) != unsafe.Pointer(w.hdrs[0].Hdr.Control) {
		t.Errorf("the control message left is of type %d", left.Type)
	}
	gro, local := w.ctrls[0].read(w.runs[0].end)
	if gro != 0 || local.String() != "127.0.0.2" {
		t.Errorf("read %d, %v", gro, local)
	}
}

func TestEndlessControlMessageIsNotRead(t *testing.T) {
	var c control
	c[3] = math.MaxInt64 // the length of a second message
	c.put(0, unix.IPPROTO_UDP, unix.UDP_GRO, 4)
	if gro, local := c.read(8 * len(c)); gro != 0 || local.IsValid() {
		t.Errorf("read %d, %v", gro, local)
	}
}

// FuzzControl reads arbitrary control bytes.
func FuzzControl(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Add([]byte{16, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0x80, 0x30, 0x1f, 0x30, 0x30, 0x30, 0x30, 0x30, 0x30}) // a length that is negative as an int
	f.Fuzz(func(t *testing.T, data []byte) {
		var c control
		n := 0
		for i := 0; i < len(data) && i < 8*len(c); i++ {
			c[i/8] |= uint64(data[i]) << (8 * (i % 8))
			n++
		}
		if _, local := c.read(n); local.Is4In6() {
			t.Errorf("%v is mapped", local)
		}
	})
}
