package tune

import (
	"testing"
	"time"
)

func TestIdleTimeIsRead(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"cpu  1270912 243424 892384 4085049 6586 0 143638 0 0 0\ncpu0 1 2 3 4 5 6 7\n": 40916350 * time.Millisecond,
		"cpu 0 0 0 100 50": 1500 * time.Millisecond,
		"":                 -1,
		"cpu 1 2 3":        -1,
		"cpu0 1 2 3 4 5 6": -1,
		"cpu a b c d e f":  -1,
	} {
		got, ok := parseIdle([]byte(in))
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %v, %v, want %v", in, got, ok, want)
		}
	}
	first, ok := IdleTime()
	if !ok || first <= 0 {
		t.Errorf("this machine: %v, %v", first, ok)
	}
}
