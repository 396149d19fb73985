package tune

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVariableTurnsTricksOff(t *testing.T) {
	all := [switches]bool{}
	for i := range all {
		all[i] = true
	}
	for value, want := range map[string][switches]bool{
		"":                        {},
		"off":                     all,
		"-rawcalls":               {RawCalls: true},
		"-rawcalls, -pollyield":   {RawCalls: true, PollYield: true},
		"-processors,-heapfloor,": {Processors: true, HeapFloor: true},
	} {
		got, err := parse(value)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v (-want +got)\n%s", value, err, diff)
		}
	}
}

func TestUnknownTrickIsAnError(t *testing.T) {
	for _, value := range []string{"rawcalls", "-rawcall", "-rawcalls,on", "-"} {
		got, err := parse(value)
		if err == nil || !strings.Contains(err.Error(), Variable) || got != [switches]bool{} {
			t.Errorf("%q: %v, error %v", value, got, err)
		}
	}
}
