package bench

import (
	"errors"
	"os"
	"runtime"
	"testing"
)

const goodStat = "4242 (wmproxy) S 1 4242 4242 0 -1 4194560 2154 0 0 0 137 63 0 0 20 0 9 0 99887 1275269120 3333 18446744073709551615"

func TestCPUTimesAreParsed(t *testing.T) {
	for _, test := range []struct {
		name, stat string
		want       sample
		wrong      bool
	}{
		{name: "plain", stat: goodStat, want: sample{"wmproxy", 2.00}},
		{name: "a name with parentheses and spaces", stat: "7 (a) (b c) R 1 1 1 0 -1 0 0 0 0 0 5 0 0 0", want: sample{"a) (b c", 0.05}},
		{name: "cut", stat: "7 (a) R 1 1 1 0 -1 0 0 0 0 0 5", wrong: true},
		{name: "no name", stat: "7 a R 1 1 1 0 -1 0 0 0 0 0 5 0", wrong: true},
		{name: "parentheses in the wrong order", stat: ") (", wrong: true},
		{name: "no numbers", stat: "7 (a) R 1 1 1 0 -1 0 0 0 0 0 x y", wrong: true},
		{name: "negative", stat: "7 (a) R 1 1 1 0 -1 0 0 0 0 0 -5 0", wrong: true},
		{name: "empty", wrong: true},
	} {
		got, err := parseStat([]byte(test.stat))
		if got != test.want || errors.Is(err, errStat) != test.wrong {
			t.Errorf("%s: got %+v and %v", test.name, got, err)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte(goodStat))
	f.Add([]byte("7 (a) (b c) R 1"))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err == nil && s.cpu < 0 {
			t.Fatalf("%q: %v seconds", b, s.cpu)
		}
	})
}

func TestMemoryIsParsed(t *testing.T) {
	const status = "Name:\tx\nVmPeak:\t  999 kB\nVmRSS:\t   1234 kB\nPss:   7 kB\nPss_Dirty:    3 kB\nVmSwap:\tmany kB\n"
	for key, want := range map[string]int64{"VmRSS": 1234 << 10, "Pss": 7 << 10, "VmSwap": 0, "Name": 0, "absent": 0} {
		if got := parseKilobytes(status, key); got != want {
			t.Errorf("%s: got %d, want %d", key, got, want)
		}
	}
}

func TestMeterMeasuresThisProcess(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it needs /proc")
	}
	m, err := newMeter([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	var o Outcome
	for o.cpu() < 0.02 {
		for i := range 1_000_000 {
			runtime.KeepAlive(i)
		}
		o = Outcome{}
		if err := m.read(&o); err != nil {
			t.Fatal(err)
		}
	}
	if u := o.Processes[0]; u.PID != os.Getpid() || u.Name == "" || u.RSS < 1<<20 || o.OwnCPU < 0.01 { // read a moment earlier
		t.Errorf("got %+v, own %v", u, o.OwnCPU)
	}
}

func TestMissingProcessIsAnError(t *testing.T) {
	if _, err := newMeter([]int{1 << 30}); err == nil {
		t.Error("no error")
	}
}
