package main

import "testing"

func TestTheProcessTakesAProcessorWhenItsOwnAreFull(t *testing.T) {
	p := procs{now: 1, most: 3}
	for _, step := range []struct {
		used  float64
		idle  float64
		looks int
		want  int
	}{
		{0.5, 3, 100, 1},                // half of one is no reason
		{0.9, 3, procsBusyLooks - 1, 1}, // nor is a short burst
		{0.5, 3, 1, 1},
		{1.0, 0.3, 100, 1}, // others need the rest
		{0.9, 1, procsBusyLooks, 2},
		{1.2, 1, 100, 2},
		{1.9, 1, procsBusyLooks - 1, 2},
		{1.9, 0.1, 1, 2},
		{1.9, 1, procsBusyLooks, 3},
		{3.0, 1, 100, 3}, // there are no more
		{0.9, 2, procsCalmLooks - 1, 3},
		{0.9, 2, 1, 2},
		{0.7, 2, 100, 2}, // one would be too few
		{0.1, 0, procsCalmLooks, 1},
		{0, 3, 100, 1},
	} {
		for range step.looks {
			p.next(step.used, step.idle)
		}
		if p.now != step.want {
			t.Errorf("after %d looks at %.1f with %.1f idle: %d processors, want %d", step.looks, step.used, step.idle, p.now, step.want)
		}
	}
}
