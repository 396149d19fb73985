package stats

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCountsReachTheTotals(t *testing.T) {
	var process, user Total
	var first, second Datagrams
	user.In(&process)
	first.In(&user)
	second.In(&user)
	first.Up(2, 20)
	first.Drop(Stale, 3)
	if before := first.Drop(Stale, 1); before != 3 {
		t.Errorf("%d were dropped before, want 3", before)
	}
	second.Down(1, 5)
	second.Drop(Policy, 1)
	user.StreamUp(7)
	user.StreamDown(8)

	var none Dropped
	none[Stale] = 4
	if diff := cmp.Diff(Snapshot{Up: Traffic{2, 20}, Drops: none}, first.Snapshot()); diff != "" {
		t.Errorf("the first's counts (-want +got):\n%s", diff)
	}
	for name, total := range map[string]*Total{"user": &user, "process": &process} {
		got := total.Snapshot()
		if diff := cmp.Diff([2]Traffic{{2, 20}, {1, 5}}, [2]Traffic{got.Up, got.Down}); diff != "" {
			t.Errorf("%s: traffic (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(map[string]uint64{"stale": 4, "policy": 1}, got.Drops.ByReason()); diff != "" {
			t.Errorf("%s: drops (-want +got):\n%s", name, diff)
		}
		if up, down := total.Streams(); up != 7 || down != 8 {
			t.Errorf("%s: bytes of streams %d and %d, want 7 and 8", name, up, down)
		}
	}
}

func TestReasonsHaveDistinctNames(t *testing.T) {
	seen := make(map[string]bool)
	for r := range numReasons {
		if name := r.String(); name == "" || seen[name] {
			t.Errorf("reason %d is called %q", r, name)
		}
		seen[r.String()] = true
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	var process, user Total
	var c Datagrams
	user.In(&process)
	c.In(&user)
	c.Drop(Stale, 1) // makes room for the counts
	if n := testing.AllocsPerRun(100, func() { c.Up(1, 1); c.Down(1, 1); c.Drop(Policy, 1); user.StreamUp(1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
