package bench

import (
	"math/rand/v2"
	"testing"
)

func TestArrivalsAreClassified(t *testing.T) {
	for _, test := range []struct {
		name     string
		sequence []uint64
		want     []arrival
	}{
		{"in sequence", []uint64{1, 2, 3}, []arrival{inOrder, inOrder, inOrder}},
		{"a gap", []uint64{1, 5, 9}, []arrival{inOrder, inOrder, inOrder}},
		{"reordered", []uint64{1, 3, 2, 4}, []arrival{inOrder, inOrder, reordered, inOrder}},
		{"duplicates", []uint64{1, 1, 2, 1, 2}, []arrival{inOrder, duplicate, inOrder, duplicate, duplicate}},
		{"reordered and duplicate", []uint64{2, 1, 1}, []arrival{inOrder, reordered, duplicate}},
		{"the window grows", []uint64{1, 255, 256, 1, 255, 40_000, 2, 256}, []arrival{inOrder, inOrder, inOrder, duplicate, duplicate, inOrder, reordered, duplicate}},
		{"too old", []uint64{1, seenWindow + 2, 2, 3}, []arrival{inOrder, inOrder, duplicate, reordered}},
		{"a bit is used again", []uint64{5, 5 + seenWindow, 5 + seenWindow, 6}, []arrival{inOrder, inOrder, duplicate, reordered}},
		{"far ahead", []uint64{1, 1 << 60, 1<<60 - 1, 1}, []arrival{inOrder, inOrder, reordered, duplicate}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var ta tally
			for i, s := range test.sequence {
				if got := ta.arrived(s); got != test.want[i] {
					t.Errorf("%d (%d.): got %d, want %d", s, i+1, got, test.want[i])
				}
			}
		})
	}
}

// A set has no bound and no bits.
func TestTallyAgreesWithASet(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var ta tally
	seen := make(map[uint64]bool)
	highest := uint64(0)
	for range 200_000 {
		s := highest + 1 + random.Uint64N(3)
		if back := random.Uint64N(seenWindow + 100); random.IntN(2) == 0 && back < highest {
			s = highest - back
		}
		want := reordered
		switch {
		case s > highest:
			want = inOrder
		case seen[s], s+seenWindow <= highest:
			want = duplicate
		}
		if got := ta.arrived(s); got != want {
			t.Fatalf("%d after %d: got %d, want %d", s, highest, got, want)
		}
		seen[s], highest = true, max(highest, s)
	}
}
