package tunnel

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/netsim"
	"wmproxy/internal/stats"
	"wmproxy/internal/user"
)

// leaveHeld attaches a new session of the user, opens flows in it, and cuts it off.
func (p *twoPaths) leaveHeld(user string, flows int) *Session {
	p.t.Helper()
	s := NewSession(SessionConfig{})
	w := &world{t: p.t, host: p.host, session: s}
	a, _, errNear, errFar := w.attach(s, Credentials{User: user, Token: "right"}, lossyPath)
	if err := errors.Join(errNear, errFar); err != nil {
		p.t.Fatal(err)
	}
	for range flows {
		send(w.open(&sink{}), "hello")
	}
	time.Sleep(time.Second)
	a.c.(*netsim.End).Break(errors.New("cut"))
	<-a.Done()
	synctest.Wait()
	return s
}

// has says whether the server still has the session.
func (p *twoPaths) has(s *Session) bool {
	for _, of := range p.host.Sessions() {
		if of.inc.id == s.current().id {
			return true
		}
	}
	return false
}

func TestOfOneUsersSessionsABoundedNumberIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Hour)
		defer p.close()
		bobs := p.leaveHeld("bob", 1) // has waited for longest
		p.join(lossyPath)             // alice's too, and attached
		v := p.talk()
		v.run(time.Second)
		var held []*Session
		for range maxHeld + 4 {
			held = append(held, p.leaveHeld("alice", 10))
		}
		for i, s := range held {
			if p.has(s) != (i >= 4) {
				t.Errorf("session %d of %d is held: %v; want the newest %d", i, len(held), p.has(s), maxHeld)
			}
		}
		if !p.has(bobs) || !p.has(p.session) {
			t.Errorf("bob's is held: %v; the one in use is there: %v", p.has(bobs), p.has(p.session))
		}
		if opened, ended := p.exit.counts(); opened != 10*(maxHeld+4)+2 || ended != 10*4 {
			t.Errorf("the exit opened %d flows, of which %d ended, want %d", opened, ended, 10*4)
		}
		if sent, back := v.run(time.Second); sent != back {
			t.Errorf("%d of %d came back beside them", back, sent)
		}
		v.check(t)
		time.Sleep(time.Hour) // nobody comes back
		p.gone(append(held, bobs)...)
	})
}

func (p *twoPaths) endedFlows() int {
	_, ended := p.exit.counts()
	return ended
}

func anybody(string) bool { return true }
func nobody(string) bool  { return false }

func TestWhatIsHeldMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Hour)
		defer p.close()
		p.join(lossyPath)
		v := p.talk()
		v.run(time.Second)
		if p.host.MakeRoom("alice", anybody) {
			t.Error("what is attached made room")
		}
		bobs := p.leaveHeld("bob", 3)
		empty := p.leaveHeld("alice", 0)
		first, second := p.leaveHeld("alice", 2), p.leaveHeld("alice", 2)
		for i, step := range []struct {
			may   func(string) bool
			made  bool
			gone  *Session
			ended int // flows, at once
		}{
			{anybody, true, first, 2},
			{anybody, true, second, 4},
			{nil, false, nil, 4}, // bob's would be there
			{nobody, false, nil, 4},
			{anybody, true, bobs, 7},
			{anybody, false, nil, 7}, // one without flows is of no help
		} {
			if made := p.host.MakeRoom("alice", step.may); made != step.made || p.endedFlows() != step.ended {
				t.Errorf("step %d: made room %v, %d flows ended; want %v, %d", i, made, p.endedFlows(), step.made, step.ended)
			}
			if step.gone != nil && p.has(step.gone) {
				t.Errorf("step %d: the wrong session went", i)
			}
		}
		if !p.has(empty) || !p.has(p.session) {
			t.Errorf("the one without flows is there: %v, the one in use: %v", p.has(empty), p.has(p.session))
		}
		if sent, back := v.run(time.Second); sent != back {
			t.Errorf("%d of %d came back", back, sent)
		}
		// Whose session went gets in again, and his flows go on.
		w := &world{t: t, host: p.host, session: bobs}
		if _, _, errNear, errFar := w.attach(bobs, Credentials{User: "bob", Token: "right"}, lossyPath); errNear != nil || errFar != nil {
			t.Errorf("bob: client %v, server %v", errNear, errFar)
		}
		if n := bobs.Flows(); n != 3 {
			t.Errorf("bob has %d flows, want 3", n)
		}
		v.check(t)
		time.Sleep(time.Hour)
		p.gone(bobs, empty, first, second)
	})
}

// fullExit has no room for so many attempts.
type fullExit struct {
	*echoExit
	full int
}

func (e *fullExit) OpenFlow(f *Flow) (FlowHandler, EndCode) {
	if e.full > 0 {
		e.full--
		return nil, EndRetry
	}
	return e.echoExit.OpenFlow(f)
}

func TestAFlowThatWaitsForRoomIsOpenedByALaterDatagram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		p.host.cfg.Exit = func(*user.User) Exit { return &fullExit{p.exit, 5} }
		p.join(lossyPath)
		v := p.talk()
		if sent, back := v.run(time.Second); back != sent-5 {
			t.Errorf("%d of %d came back, want all but 5", back, sent)
		}
		if n := p.host.Sessions()[0].Dropped()[stats.Refused]; n != 5 {
			t.Errorf("%d drops for want of room, want 5", n)
		}
		v.check(t)
		p.gone()
	})
}
