package standalone

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/status"
)

func TestAnAssociationIsShownWithWhatItsExitKnows(t *testing.T) {
	idle := 30.0
	got := joined(
		[]status.Association{
			{Client: "a", Session: "s", Flow: 2, Drops: map[string]uint64{"source": 1, "malformed": 2}},
			{Client: "b", Session: "s", Flow: 4},
			{Client: "c", Session: "s", Flow: 6}, // its exit was idle and has gone
		},
		[]status.Association{
			{Exit: "y", Flow: 4, Drops: map[string]uint64{"policy": 5}},
			{Exit: "x", Flow: 2, IdleSeconds: &idle, Drops: map[string]uint64{"malformed": 3}},
			{Exit: "z", Flow: 8}, // opened since
		},
	)
	want := []status.Association{
		{Client: "a", Exit: "x", Flow: 2, IdleSeconds: &idle, Drops: map[string]uint64{"source": 1, "malformed": 5}},
		{Client: "b", Exit: "y", Flow: 4, Drops: map[string]uint64{"policy": 5}},
		{Client: "c", Flow: 6},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
