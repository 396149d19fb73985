package tune

import (
	"testing"
)

// look returns the number of processors after so many looks.
func (g *governor) look(n int, used, idle float64) int {
	for range n {
		g.next(used, idle)
	}
	return g.now
}

const many = 100 // looks: more than any decision takes

func TestFullProcessGetsAnotherProcessor(t *testing.T) {
	g := governor{now: 1, most: 2}
	if n := g.look(many, 0.5, 2); n != 1 {
		t.Errorf("%d processors at half the load of one", n)
	}
	if n := g.look(1, 1, 2); n != 1 {
		t.Errorf("%d processors after a short burst", n)
	}
	if n := g.look(many, 1, 2); n != 2 {
		t.Errorf("%d processors under the full load of one, want 2", n)
	}
	if n := g.look(many, 2, 2); n != 2 {
		t.Errorf("%d processors of 2", n)
	}
}

func TestBusyMachineGivesNoOtherProcessor(t *testing.T) {
	g := governor{now: 1, most: 2}
	if n := g.look(many, 1, 0.1); n != 1 {
		t.Errorf("%d processors while others use the rest, want 1", n)
	}
}

func TestCalmProcessGivesProcessorsBack(t *testing.T) {
	g := governor{now: 3, most: 3}
	if n := g.look(many, 1.5, 1); n != 3 {
		t.Errorf("%d processors at a load of 1.5, want 3", n)
	}
	if n := g.look(1, 0.1, 2); n != 3 {
		t.Errorf("%d processors after a short calm, want 3", n)
	}
	if n := g.look(many, 0.1, 2); n != 1 {
		t.Errorf("%d processors without load, want 1", n)
	}
}
