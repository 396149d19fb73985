package carrier

import "testing"

func TestWindowsFollowTheBudget(t *testing.T) {
	for memory, want := range map[int64]uint64{
		0: 4 << 20, 16 << 20: 256 << 10, 64 << 20: 512 << 10, 512 << 20: 4 << 20, 64 << 30: 4 << 20,
	} {
		if got := WindowsFor(memory).WithDefaults().Stream; got != want {
			t.Errorf("memory %d: a stream may have %d, want %d", memory, got, want)
		}
	}
}
