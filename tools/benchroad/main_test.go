//go:build linux

package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wmproxy/internal/netlab"
)

func TestMain(m *testing.M) {
	// The test is the program, too, when it starts itself on a host.
	if len(os.Args) > 1 && (os.Args[1] == loadCommand || os.Args[1] == farCommand) {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestListsHoldKnownWords(t *testing.T) {
	o, err := parse([]string{"-paths", "P4,P7", "-loads", "half", "-systems", "direct,auto", "-rounds", "1"}, io.Discard)
	if err != nil || !slices.Equal(o.paths, []string{"P4", "P7"}) || !slices.Equal(o.loads, []string{"half"}) || len(o.congestion) != 2 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"-paths", "P10"}, {"-loads", "half, over"}, {"-cc", "reno"}, {"-rounds", "0"}, {"P4"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}

func TestPathKnowsItsBounds(t *testing.T) {
	for _, test := range []struct {
		name     string
		multiple float64
		want     float64
	}{
		{"P1", 0.5, 1}, {"P4", 0.5, 0.9409}, {"P4", 1.2, 0.9409 / 1.2}, {"P9", 0.5, 0.994},
	} {
		if got := pathOf(test.name).roundTrips(test.multiple); math.Abs(got-test.want) > 0.0005 {
			t.Errorf("%s at %v: %v come back, want %v", test.name, test.multiple, got, test.want)
		}
	}
	if got := pathOf("P7").udpRate(); got != 5*megabit {
		t.Errorf("P7 has %d bit/s for UDP", got)
	}
}

func TestMediansNeedAllRounds(t *testing.T) {
	c := cell{Rounds: []values{{3, 1}, {1, nan}, {2, 5}}}
	if got := c.median(0); got != 2 {
		t.Errorf("the median is %v, want 2", got)
	}
	if got := c.median(1); !math.IsNaN(got) {
		t.Errorf("the median with a round missing is %v", got)
	}
}

// someResults are those of one round of all loads on all systems, as if measured.
func someResults() *results {
	r := &results{Path: "P4", Began: time.Unix(1e9, 0), Rounds: 2, Duration: time.Second, Absent: map[string]string{"tuic": "sing-box is not installed"}}
	r.Checks = []check{{Title: "round trip", Asked: 200, Got: 230, Unit: "ms", Tolerance: 0.01, Larger: true}}
	for i, l := range loads {
		for j, s := range systems {
			c := &cell{row: row{s.name, "cubic"}, Load: l.name}
			for range 2 {
				v := make(values, len(l.figures))
				for k := range v {
					v[k] = number(i + j + k)
				}
				c.Rounds = append(c.Rounds, v)
			}
			if s.name == "ss" {
				c.Rounds, c.Failed = nil, "nothing <passes>"
			}
			r.Cells = append(r.Cells, c)
		}
	}
	return r
}

func TestPageHasAllThatWasMeasured(t *testing.T) {
	page := filepath.Join(t.TempDir(), "ROAD.md")
	if err := someResults().save(page); err != nil {
		t.Fatal(err)
	}
	if err := writePage(page); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"![200 ms", "(road/P4.svg)", "230.0 †", "| wmproxy, cubic | 3.0 (3.0 3.0) |", "does not pass", "sing-box is not installed"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	chart, err := os.Open(filepath.Join(filepath.Dir(page), "road", "P4.svg"))
	if err != nil {
		t.Fatal(err)
	}
	defer chart.Close()
	for d := xml.NewDecoder(chart); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the chart is no XML: %v", err)
		}
	}
}

func TestFiguresNotMeasuredSurviveJSON(t *testing.T) {
	b, err := json.Marshal(values{1.5, nan})
	if err != nil || string(b) != "[1.5,null]" {
		t.Fatalf("%s, %v", b, err)
	}
	var v values
	if err := json.Unmarshal(b, &v); err != nil || v[0] != 1.5 || !math.IsNaN(float64(v[1])) {
		t.Errorf("%v, %v", v, err)
	}
}

// A run over a short path, with no proxy, from the network to the page.
func TestRunMeasuresAPath(t *testing.T) {
	if err := netlab.Missing(); err != nil {
		if os.Getenv("WMPROXY_TEST_NO_SKIP") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	page := filepath.Join(t.TempDir(), "ROAD.md")
	o, err := parse([]string{"-paths", "P6", "-systems", direct, "-loads", "first,half,http3", "-rounds", "1", "-dur", "1s", "-wmproxy", "/none", "-out", page}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(page), "road", "P6.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r results
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Checks) != 3 {
		t.Errorf("%d checks of the path, want 3", len(r.Checks))
	}
	for _, c := range r.Cells {
		// That a round trip takes no less than the path's is all that a busy machine lets us ask.
		if c.Failed != "" || len(c.Rounds) != 1 || !(c.Rounds[0][0] > 0) {
			t.Errorf("%+v", c)
		}
		if c.Load == "first" && (c.Rounds[0][0] < 2 || c.Rounds[0][1] < 1) {
			t.Errorf("first bytes after %v round trips", c.Rounds[0])
		}
	}
}
