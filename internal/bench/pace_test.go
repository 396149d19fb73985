package bench

import (
	"testing"
	"time"
)

// run advances a pace as a sender without delays does.
func run(p *pace, from, to int64) (sent int64, largest int) {
	for now := from; now < to; now = p.next(now) {
		n := p.due(now)
		sent += int64(n)
		largest = max(largest, n)
	}
	return sent, largest
}

func TestPaceKeepsRateInSmallSteps(t *testing.T) {
	for _, test := range []struct {
		rate    int64
		largest int
	}{
		{1, 1}, {50, 1}, {999, 1}, {5000, 1}, {20_000, 1}, {30_000, 2}, {1_000_000, 50}, {MaxRate, 250},
	} {
		p := pace{rate: test.rate}
		sent, largest := run(&p, 0, int64(2*time.Second)+1)
		if want := 2 * test.rate; sent < want-int64(test.largest) || sent > want {
			t.Errorf("%d/s: %d sent in two seconds", test.rate, sent)
		}
		if largest > test.largest {
			t.Errorf("%d/s: %d at once, want at most %d", test.rate, largest, test.largest)
		}
		if p.skipped != 0 {
			t.Errorf("%d/s: %d skipped", test.rate, p.skipped)
		}
	}
}

func TestDelayedSenderDoesNotBurst(t *testing.T) {
	p := pace{rate: 10_000}
	run(&p, 0, int64(100*time.Millisecond))
	if n := p.due(int64(200 * time.Millisecond)); n != 50 {
		t.Errorf("%d at once after 100 ms, want 50, for 5 ms", n)
	}
	if p.skipped < 940 || p.skipped > 960 {
		t.Errorf("%d skipped, want the rest of 1,000", p.skipped)
	}
	if n := p.due(int64(200*time.Millisecond) + int64(time.Millisecond)); n != 10 {
		t.Errorf("%d a millisecond later, want 10", n)
	}
}

func TestDelayedSlowSenderStillSends(t *testing.T) {
	p := pace{rate: 1}
	if n := p.due(int64(3 * time.Second)); n != 1 || p.skipped != 2 {
		t.Errorf("%d due and %d skipped after three seconds", n, p.skipped)
	}
}

func TestPaceDoesNotOverflow(t *testing.T) {
	p := pace{rate: MaxRate}
	day := int64(24 * time.Hour)
	if n := p.due(day); n <= 0 || p.sent != day/int64(time.Second)*MaxRate {
		t.Errorf("%d due, %d in total after a day", n, p.sent)
	}
	if next := p.next(day); next <= day || next > day+int64(time.Millisecond) {
		t.Errorf("the next is due %v later", time.Duration(next-day))
	}
}
