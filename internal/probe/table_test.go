package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wmproxy/internal/udpio"
	"wmproxy/socks"
)

// impatient is a pace for servers that lose datagrams on purpose. It waits long enough for
// the others on a busy machine.
var impatient = pace{rounds: 5, wait: time.Second, giveUp: 2, perSize: 10 * time.Second}

// largest is the largest datagram that an IPv4 association carries to an IPv4 target.
const largest = udpio.MaxDatagram - 10

func TestEverySizePassesWithGoodServer(t *testing.T) {
	echo := startEcho(t)
	fake := (&fakeSocks{}).start(t)
	sizes := []int{0, 1, 7, 8, 512, 1200, 1472, 9000, largest}
	results, err := Sizes(t.Context(), fake.client(), echo, sizes)
	if err != nil || len(results) != len(sizes) {
		t.Fatalf("%d results, %v", len(results), err)
	}
	for i, r := range results {
		if !r.OK() || r.Err != nil || r.Size != sizes[i] || r.Sent != sizePace.rounds || r.Received != r.Sent ||
			r.Min <= 0 || r.Median < r.Min {
			t.Errorf("%+v", r)
		}
	}
}

func TestFaultsAreReportedBySize(t *testing.T) {
	echo := startEcho(t)
	flip := func(_ int, b []byte) []byte {
		if len(b) > 0 {
			b[len(b)-1] ^= 1
		}
		return b
	}
	first := func(seq int, b []byte) []byte {
		if seq == 1 {
			return append([]byte("late"), b...)
		}
		return b
	}
	for _, tt := range []struct {
		name           string
		fake           *fakeSocks
		size           int
		sent, received int
		ok             bool
		is             error
	}{
		{"all lost", &fakeSocks{dropUDP: true}, 100, 2, 0, false, ErrNoReply},
		{"one lost", &fakeSocks{lose: 1}, 100, 5, 4, true, ErrNoReply},
		{"a byte changed", &fakeSocks{spoil: flip}, 100, 1, 0, false, errChanged},
		{"cut", &fakeSocks{spoil: func(_ int, b []byte) []byte { return b[:50] }}, 100, 1, 0, false, errChanged},
		{"a foreign datagram first", &fakeSocks{spoil: first}, 100, 5, 4, true, ErrNoReply},
		{"the wrong source", &fakeSocks{source: func(netip.AddrPort) socks.Addr { return socks.Addr{Name: "x", Port: 1} }}, 100, 1, 0, false, errWrongSource},
		{"more than UDP carries", &fakeSocks{}, largest + 1, 1, 0, false, socks.ErrDatagramSize},
		{"no such size", &fakeSocks{}, udpio.MaxDatagram + 1, 1, 0, false, socks.ErrDatagramSize},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			results, err := measureSizes(t.Context(), tt.fake.start(t).client(), echo, []int{tt.size}, impatient)
			if err != nil || len(results) != 1 {
				t.Fatalf("%v, %v", results, err)
			}
			r := results[0]
			if r.Sent != tt.sent || r.Received != tt.received || r.OK() != tt.ok || !errors.Is(r.Err, tt.is) {
				t.Errorf("%+v, want sent %d, received %d, %v, %v", r, tt.sent, tt.received, tt.ok, tt.is)
			}
		})
	}
}

func TestSizesStopsWithTheAssociation(t *testing.T) {
	echo := startEcho(t)
	fake := (&fakeSocks{endUDP: true}).start(t)
	results, err := Sizes(t.Context(), fake.client(), echo, []int{1, 2, 3})
	if !errors.Is(err, socks.ErrAssociationEnded) || len(results) != 1 || results[0].OK() {
		t.Errorf("%v, %v", results, err)
	}
}

func TestMeasureEndsWithItsContext(t *testing.T) {
	echo := startEcho(t)
	fake := (&fakeSocks{dropUDP: true}).start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	m := Measure(ctx, "x", fake.client(), Targets{Echo: echo, DNS: echo, Domain: "x.test", Sizes: []int{1, 2}, Stream: 1})
	for _, err := range []error{m.Err, m.Lookup.Err, m.Stream.Err} {
		if !timedOut(err) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the deadline's", err)
		}
	}
}

func TestStreamComesBackWhole(t *testing.T) {
	echo := startEcho(t)
	fake := (&fakeSocks{}).start(t)
	for _, n := range []int64{0, 1, 4 << 20} {
		if r := Stream(t.Context(), fake.client(), echo, n); r.Err != nil || r.Bytes != n || r.Duration <= 0 {
			t.Errorf("%d bytes: %+v", n, r)
		}
	}
}

func TestCutOrRefusedStreamIsAnError(t *testing.T) {
	echo := startEcho(t)
	cut := (&fakeSocks{cutStream: true}).start(t)
	if r := Stream(t.Context(), cut.client(), echo, 1000); !errors.Is(r.Err, errCutShort) {
		t.Errorf("cut: %v", r.Err)
	}
	refusing := (&fakeSocks{reply: socks.ReplyHostUnreachable}).start(t)
	var reply *socks.ReplyError
	if r := Stream(t.Context(), refusing.client(), echo, 1000); !errors.As(r.Err, &reply) {
		t.Errorf("refused: %v", r.Err)
	}
}

func TestLookupChecksTheAnswer(t *testing.T) {
	server := startDNS(t)
	good := (&fakeSocks{}).start(t)
	want := netip.MustParseAddr("192.0.2.1")
	r := lookup(t.Context(), good.client(), server.Addr(), "demo.test", want)
	if r.Err != nil || len(r.Addrs) != 2 || r.Addrs[0] != want || r.RTT <= 0 {
		t.Errorf("%+v", r)
	}
	if r := lookup(t.Context(), good.client(), server.Addr(), "demo.test", netip.MustParseAddr("192.0.2.3")); !errors.Is(r.Err, errUnexpected) {
		t.Errorf("%+v", r)
	}
	if r := lookup(t.Context(), good.client(), server.Addr(), "other.test", netip.Addr{}); !errors.Is(r.Err, errNoRecord) {
		t.Errorf("%+v", r)
	}
}

func TestTableShowsMeasurements(t *testing.T) {
	echo, server := startEcho(t), startDNS(t)
	fake := (&fakeSocks{user: "u", pass: "p"}).start(t)
	m := Measure(t.Context(), "QUIC", fake.client(), Targets{
		Echo: echo, DNS: server.Addr(), Domain: "demo.test", Expect: netip.MustParseAddr("192.0.2.1"),
		Sizes: []int{0, 1, 512, 1200, 1472, 9000, largest}, Stream: 4 << 20,
	})
	if !m.OK() {
		t.Errorf("%+v", m)
	}
	var out strings.Builder
	if err := PrintTable(&out, m); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	hasLines(t, out.String(), "datagram, 0 bytes ", "datagram, 65,497 bytes   9 of 9 ", "DNS look-up, 192.0.2.1 ", "stream, 4,194,304 bytes ", "MB/s")
}

func TestTableIsAlignedAndNamesFailures(t *testing.T) {
	m := Measurement{
		Label: "yamux",
		Sizes: []SizeResult{
			{Size: 0, Sent: 9, Received: 9, Min: 120 * time.Microsecond, Median: 1500 * time.Microsecond},
			{Size: 65497, Sent: 3, Err: ErrNoReply},
		},
		Err:    socks.ErrAssociationEnded,
		Lookup: LookupResult{Err: fmt.Errorf("%w of x.test.", errNoRecord)},
		Stream: StreamResult{Bytes: 4 << 20, Duration: 40 * time.Millisecond},
	}
	var out strings.Builder
	if err := PrintTable(&out, m); err != nil {
		t.Fatal(err)
	}
	want := `over   what                     passed  fastest   median
yamux  datagram, 0 bytes        9 of 9  0.12 ms   1.50 ms
yamux  datagram, 65,497 bytes   0 of 3  -         -        no reply
yamux  datagrams                no                         socks: the server ended the UDP association
yamux  DNS look-up              no      -                  the DNS server knows no A record of x.test.
yamux  stream, 4,194,304 bytes  yes     40.00 ms           105 MB/s there and back
`
	got := ""
	for line := range strings.Lines(out.String()) {
		got += strings.TrimRight(line, " \n") + "\n"
	}
	if got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
	if m.OK() {
		t.Error("OK returned true")
	}
}
