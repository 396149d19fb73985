package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wmproxy/internal/testmain"
	"wmproxy/tools/stage"
)

func TestMain(m *testing.M) { testmain.Run(m) }

func TestMedianIsTheMiddleValue(t *testing.T) {
	for _, test := range []struct {
		v    []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
		{nil, nan},
		{[]float64{1, nan, 3}, nan},
	} {
		given := slices.Clone(test.v)
		if got := stage.Median(test.v); got != test.want && !(math.IsNaN(got) && math.IsNaN(test.want)) {
			t.Errorf("%v: got %v, want %v", test.v, got, test.want)
		}
		for i := range given {
			if given[i] != test.v[i] && !math.IsNaN(given[i]) {
				t.Errorf("%v was sorted in place", given)
			}
		}
	}
}

func TestFiguresAreFormatted(t *testing.T) {
	for _, test := range []struct {
		v      float64
		digits int
		want   string
	}{
		{0, 0, "0"}, {999.6, 0, "1,000"}, {1234567.8, 1, "1,234,567.8"}, {0.12345, 3, "0.123"}, {-1234, 0, "-1,234"}, {-123, 0, "-123"}, {nan, 2, "–"},
	} {
		if got := (figure{digits: test.digits}).text(test.v); got != test.want {
			t.Errorf("%v: got %s, want %s", test.v, got, test.want)
		}
	}
	if got := multiple(3, 2); got != " (1.50×)" {
		t.Errorf("got %q", got)
	}
	if multiple(3, 0) != "" || multiple(nan, 1) != "" || multiple(1, nan) != "" {
		t.Error("there is a multiple without two values")
	}
}

func TestRoundsBeginWithAnotherSystem(t *testing.T) {
	all := systems[:3]
	first := make(map[string]int)
	for round := range 6 {
		r := rotated(all, round)
		if len(r) != 3 {
			t.Fatalf("round %d has %d systems", round, len(r))
		}
		first[r[0].name]++
	}
	for _, s := range all {
		if first[s.name] != 2 {
			t.Errorf("%s was first %d times of 6", s.name, first[s.name])
		}
	}
	if all[0].name != direct || rotated(nil, 3) != nil {
		t.Error("rotated changed its argument")
	}
}

func TestCommandLineIsParsed(t *testing.T) {
	o, err := parse(strings.Fields("-quick -only 64,rate -systems direct,ss -arrangements own -rounds 2"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(o.only, []string{"64", "rate"}) || !slices.Equal(o.systems, []string{direct, "ss"}) || !slices.Equal(o.arrangements, []string{own}) ||
		o.rounds != 2 || o.duration != 1500*time.Millisecond || o.hold != 2000 {
		t.Errorf("got %+v", o)
	}
	if o, err := parse(nil, io.Discard); err != nil || len(o.only) != len(loads) || len(o.systems) != len(systems) || len(o.arrangements) != 2 || o.hold != 9000 {
		t.Errorf("got %+v and %v", o, err)
	}
	for _, line := range []string{"-only 65", "-systems ss,", "-arrangements both", "left over", "-rounds x"} {
		if _, err := parse(strings.Fields(line), io.Discard); err == nil {
			t.Errorf("%s was accepted", line)
		}
	}
}

const sampleUDP = `{"round_trips_per_second": %s, "cpu_seconds_per_million": 20, "loss_percent": 0.5,
	"processes": [{"pid": 1}], "rtt": {"p50_us": 100, "p99_us": 1500}}`

func TestReportHasTheMeasuredFigures(t *testing.T) {
	c := &comparison{
		options: options{command: "make bench-compare", arrangements: []string{shared, own}, rounds: 3, duration: time.Second},
		cells:   make(map[key]*cell), absent: map[string]string{"gost": "gost is not installed"}, began: time.Now(),
	}
	l := loads[0]
	put := func(system string, rates ...string) {
		ce := &cell{}
		for _, rate := range rates {
			v, err := l.read([]byte(strings.Replace(sampleUDP, "%s", rate, 1)))
			if err != nil {
				t.Fatal(err)
			}
			ce.rounds = append(ce.rounds, v)
		}
		c.cells[key{shared, l.name, system}] = ce
	}
	put(baseline, "1000", "3000", "2000")
	put("quic", "5000", "1", "6000")
	c.cells[key{shared, l.name, "tuic"}] = &cell{failed: "the target does not answer; try again"}
	b := new(strings.Builder)
	for _, l := range loads {
		if c.measured(l) {
			c.table(b, l)
		}
	}
	c.notes(b)
	text := b.String()
	for _, want := range []string{
		"## 64 B, 4 associations × 32 in flight\n",
		"| shared | round trips/s | CPU-s per million | RTT p50 µs | RTT p99 µs | lost % |\n| --- | ---: | ---: | ---: | ---: | ---: |\n",
		"| shadowsocks-libev, aes-128-gcm | 2,000 (1.00×) | 20.0 (1.00×) | 100 (1.00×) | 1,500 (1.00×) | 0.500 |\n",
		"| wmproxy over QUIC | 5,000 (2.50×) | 20.0 (1.00×) | 100 (1.00×) | 1,500 (1.00×) | 0.500 |\n",
		"| sing-box, TUIC | does not pass | | | | |\n",
		"- gost was not measured: gost is not installed\n",
		"- shared, 64 B, 4 associations × 32 in flight, sing-box, TUIC: after 0 rounds the target does not answer\n",
		"`wmproxy bench udp --size=64 --assoc=4 --window=32 --dur=1s`",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "hysteria") || strings.Contains(text, loads[1].title) {
		t.Errorf("there is more than was measured in\n%s", text)
	}
}

func TestHandwrittenPartStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.md")
	c := &comparison{options: options{out: path, arrangements: []string{shared}}, log: io.Discard, cells: make(map[key]*cell), absent: make(map[string]string), began: time.Now()}
	const mine = "The limit is the memory bus.\n"
	for range 3 {
		if err := c.write(t.Context()); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(b), byHand) != 1 {
			t.Fatalf("the mark occurs %d times", strings.Count(string(b), byHand))
		}
		if !strings.Contains(string(b), mine) {
			if err := os.WriteFile(path, append(b, mine...), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := handwritten(path); got != byHand+mine {
		t.Errorf("got %q", got)
	}
}

func TestLoadsReadTheirFigures(t *testing.T) {
	for _, l := range loads {
		var calls atomic.Int64
		answer := func(context.Context, ...string) ([]byte, error) {
			calls.Add(1)
			return []byte(`{}`), nil
		}
		v, err := l.measure(t.Context(), options{duration: time.Millisecond}, answer, answer)
		if err != nil || len(v) != len(l.figure) || calls.Load() == 0 {
			t.Errorf("%s: %d values for %d figures, %v", l.name, len(v), len(l.figure), err)
		}
		garble := func(context.Context, ...string) ([]byte, error) { return []byte(`not JSON`), nil }
		if _, err := l.measure(t.Context(), options{duration: time.Millisecond}, garble, garble); err == nil {
			t.Errorf("%s accepted a malformed result", l.name)
		}
	}
}

func TestFloodHasOwnTargetAndLimitedRate(t *testing.T) {
	var mu sync.Mutex
	record := func(loads *[]string, p99 int) bencher {
		return func(_ context.Context, args ...string) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			*loads = append(*loads, args[1]+" "+args[3])
			return fmt.Appendf(nil, `{"round_trips_per_second": 1000, "loss_percent": 2, "rtt": {"p99_us": %d}}`, p99), nil
		}
	}
	var calls, floods []string
	v, err := besideFlood(t.Context(), options{duration: time.Millisecond}, record(&calls, 7), record(&floods, 9))
	if err != nil || !slices.Equal(v, values{7, 7, 2, 1000, 2}) {
		t.Errorf("got %v and %v", v, err)
	}
	if !slices.Equal(calls, []string{"--size=160 --rate=50", "--size=160 --rate=50"}) {
		t.Errorf("the calls were %q", calls)
	}
	// The first rate is a share of the maximum. The number of further rates depends on the machine.
	n := len(floods)
	if n < 1+besideFits+1 || n > 1+besideTries+1 || floods[0] != "--size=200 --window=128" || floods[1] != "--size=200 --rate=800" {
		t.Errorf("the floods were %q", floods)
	}
}

func TestFloodRateFitsTwiceInARow(t *testing.T) {
	const fits, busy, skips = "fits", "busy", "skips"
	for _, test := range []struct {
		name   string
		trials []string
		tried  []int
		want   int
	}{
		{"the first rate fits", []string{fits, fits}, []int{1000, 1000}, 1000},
		{"the machine is busy", []string{busy, fits, fits}, []int{1000, 800, 800}, 800},
		{"the sender skips some", []string{skips, skips, fits, fits}, []int{1000, 900, 810, 810}, 810},
		{"it fits once", []string{fits, skips, fits, fits}, []int{1000, 1000, 900, 900}, 900},
	} {
		var tried []int
		got, err := fitting(1000, func(rate int) (trial, error) {
			tried = append(tried, rate)
			return map[string]trial{fits: {0.8, 0.0001}, busy: {1, 0}, skips: {0.5, 0.01}}[test.trials[len(tried)-1]], nil
		})
		if err != nil || got != test.want || !slices.Equal(tried, test.tried) {
			t.Errorf("%s: got %d after %v, %v, want %d after %v", test.name, got, tried, err, test.want, test.tried)
		}
	}
	tries := 0
	got, err := fitting(10, func(int) (trial, error) { tries++; return trial{1, 1}, nil })
	if err != nil || got != 1 || tries != besideTries {
		t.Errorf("got %d after %d tries, %v", got, tries, err)
	}
}
