package client

import (
	"testing"
	"time"
)

// servers is a pool with what the test says of its servers.
type servers struct {
	*pool
	now time.Time
}

func newServers(n int, fastest bool) *servers {
	now := time.Unix(1_000_000, 0)
	return &servers{newPool(n, fastest, now), now}
}

// see says that server i is of use or not, and was last proved to answer just now
// or, with a negative ago, never since it failed.
func (s *servers) see(i int, usable bool, proved time.Time) {
	s.set(i, usable, proved, time.Duration(10+i)*time.Millisecond, s.now)
}

func (s *servers) pass(d time.Duration) { s.now = s.now.Add(d) }

func (s *servers) want(t *testing.T, what string, want int) {
	t.Helper()
	if got := s.choose(s.now); got != want {
		t.Errorf("%s: server %d, want %d", what, got, want)
	}
}

func TestTheFirstServerThatWorksIsUsedAndReturnedTo(t *testing.T) {
	s := newServers(2, false)
	s.want(t, "nothing is attached", -1)
	s.see(1, true, s.now)
	s.want(t, "only the second answers", 1)
	s.pass(time.Second)
	s.see(0, true, s.now)
	s.want(t, "the first has just come", 1)
	s.pass(backAfter)
	s.want(t, "the first has been there for a while", 0)

	s.pass(time.Minute)
	s.see(0, false, s.now)
	s.want(t, "the second has not answered since the first failed", 0)
	if !s.doubtful(1) {
		t.Error("it should be asked")
	}
	if gone, _ := s.gone(0, false, s.now); gone {
		t.Error("associations would move to a server that may be gone as well")
	}
	s.pass(50 * time.Millisecond)
	s.see(1, true, s.now)
	s.want(t, "the second has answered", 1)
	if gone, in := s.gone(0, false, s.now); gone || in <= 0 || in > goneAfter {
		t.Errorf("after 50 ms the first is gone: %v, in %v", gone, in)
	}
	s.pass(goneAfter)
	if gone, _ := s.gone(0, false, s.now); !gone {
		t.Error("after a second it is not gone")
	}
	if gone, _ := s.gone(1, false, s.now); gone {
		t.Error("the one in use is gone")
	}
	s.see(0, true, s.now)
	s.want(t, "the first has just come back", 1)
	s.pass(backAfter)
	s.want(t, "it has been back for a while", 0)
}

func TestWithoutAUsableServerNothingMoves(t *testing.T) {
	s := newServers(3, false)
	for i := range 3 {
		s.see(i, true, s.now)
	}
	s.want(t, "all answer", 0)
	s.pass(time.Minute)
	for i := range 3 {
		s.see(i, false, s.now)
	}
	s.pass(time.Minute)
	s.want(t, "none does", 0)
	for i := range 3 {
		if gone, in := s.gone(i, false, s.now); gone || in != 0 {
			t.Errorf("server %d: gone %v, in %v", i, gone, in)
		}
	}
}

func TestAServerThatDrainsIsLeftAtOnce(t *testing.T) {
	s := newServers(2, false)
	s.see(0, true, s.now)
	s.see(1, true, s.now)
	s.want(t, "both answer", 0)
	s.pass(time.Minute)
	s.see(0, false, s.now) // draining is of no use
	s.pass(time.Millisecond)
	s.see(1, true, s.now)
	s.want(t, "the other has answered", 1)
	if gone, _ := s.gone(0, true, s.now); !gone {
		t.Error("its associations wait")
	}
}

func TestTheFastestServerMustBeClearlyFaster(t *testing.T) {
	s := newServers(2, true)
	set := func(a, b time.Duration) {
		s.set(0, true, s.now, a, s.now)
		s.set(1, true, s.now, b, s.now)
	}
	set(100*time.Millisecond, 50*time.Millisecond)
	s.want(t, "at the start", 1)
	s.pass(time.Minute)
	set(45*time.Millisecond, 50*time.Millisecond)
	s.want(t, "a tenth faster is not enough", 1)
	set(35*time.Millisecond, 50*time.Millisecond)
	s.want(t, "a third is", 0)
	set(50*time.Millisecond, 45*time.Millisecond)
	s.want(t, "and it stays", 0)
}
