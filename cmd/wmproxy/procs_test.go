package main

import "testing"

func TestTheProcessTakesAProcessorWhenItsOwnAreFull(t *testing.T) {
	p := procs{now: 1, most: 3}
	for _, step := range []struct {
		used  float64
		looks int
		want  int
	}{
		{0.5, 100, 1},                // half of one is no reason
		{0.9, procsBusyLooks - 1, 1}, // nor is a short burst
		{0.5, 1, 1},
		{0.9, procsBusyLooks, 2},
		{1.2, 100, 2},
		{1.9, procsBusyLooks, 3},
		{3.0, 100, 3}, // there are no more
		{0.9, procsCalmLooks - 1, 3},
		{0.9, 1, 2},
		{0.7, 100, 2}, // one would be too few
		{0.1, procsCalmLooks, 1},
		{0, 100, 1},
	} {
		for range step.looks {
			p.next(step.used)
		}
		if p.now != step.want {
			t.Errorf("after %d looks at %.1f: %d processors, want %d", step.looks, step.used, p.now, step.want)
		}
	}
}
