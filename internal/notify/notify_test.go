package notify

import "testing"

func TestWakesAreKeptAsOne(t *testing.T) {
	s := New()
	s.Wake()
	s.Wake()
	<-s
	select {
	case <-s:
		t.Error("woken twice, want once")
	default:
	}
	s.Wake()
	<-s
}
