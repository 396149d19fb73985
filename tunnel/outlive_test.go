package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/netsim"
	"wmproxy/internal/udpio"
	"wmproxy/internal/user"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/quic"
	"wmproxy/tunnel/tcp"
)

// twoPaths is a session with a lossy carrier and an ordered one, over networks
// that the test can break.
type twoPaths struct {
	*world
	mu     sync.Mutex
	events []string
}

var (
	lossyPath   = netsim.Config{Traits: quic.Traits, Lossy: true, MaxBundle: 1415, Delay: 25 * time.Millisecond, Queue: 512}
	orderedPath = netsim.Config{Traits: tcp.Traits, Delay: 25 * time.Millisecond, Queue: 512}
)

func newTwoPaths(t *testing.T, hold time.Duration) *twoPaths {
	p := &twoPaths{world: &world{t: t, exit: &echoExit{}}}
	p.host = NewRegistry(RegistryConfig{
		Authenticate: withToken,
		Exit:         func(*user.User) Exit { return p.exit },
		Hold:         hold,
	})
	p.session = NewSession(SessionConfig{Transports: testTransports, Event: func(s string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.events = append(p.events, s)
	}})
	return p
}

// join attaches a carrier and returns the two ends of its path.
func (p *twoPaths) join(cfg netsim.Config) (near, far *netsim.End) {
	p.t.Helper()
	near, far = netsim.New(cfg, cfg)
	var wg sync.WaitGroup
	var errNear, errFar error
	wg.Go(func() { _, errFar = p.host.Attach(context.Background(), far) })
	wg.Go(func() { _, errNear = p.session.Attach(context.Background(), near, alice) })
	wg.Wait()
	if err := errors.Join(errNear, errFar); err != nil {
		p.t.Fatal(err)
	}
	return near, far
}

// said counts the events with that text in them.
func (p *twoPaths) said(text string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if strings.Contains(e, text) {
			n++
		}
	}
	return n
}

// voice sends numbered datagrams at 50/s and notes when their echo returns.
type voice struct {
	flow *Flow
	mu   sync.Mutex
	sent int
	back map[int]int // number: how often
	last time.Time
	gap  time.Duration // the longest between two arrivals
	end  []EndCode
}

const voiceInterval = 20 * time.Millisecond

func (v *voice) Receive(bodies [][]byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	for _, b := range bodies {
		v.back[int(binary.BigEndian.Uint32(b))]++
		if !v.last.IsZero() {
			v.gap = max(v.gap, now.Sub(v.last))
		}
		v.last = now
	}
}

func (v *voice) Ended(code EndCode) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.end = append(v.end, code)
}

func (p *twoPaths) talk() *voice {
	v := &voice{back: make(map[int]int)}
	v.flow = p.open(v)
	return v
}

// run talks for d and returns how many of the datagrams sent in it came back.
func (v *voice) run(d time.Duration) (sent, back int) {
	first := v.sent
	b := make([]byte, 160)
	for range int(d / voiceInterval) {
		binary.BigEndian.PutUint32(b, uint32(v.sent))
		v.sent++
		v.flow.Send([]udpio.Message{{Body: b}})
		time.Sleep(voiceInterval)
	}
	time.Sleep(100 * time.Millisecond)
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := first; i < v.sent; i++ {
		if v.back[i] > 0 {
			back++
		}
	}
	return v.sent - first, back
}

// check fails for what must never happen: a datagram twice, or the flow's end.
func (v *voice) check(t *testing.T) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, n := range v.back {
		if n != 1 {
			t.Errorf("datagram %d came back %d times", i, n)
		}
	}
	if len(v.end) > 0 {
		t.Errorf("the flow ended: %v", v.end)
	}
}

func TestDatagramsMoveFromADeadPathAndBackAndStaySteady(t *testing.T) {
	for _, test := range []struct {
		name      string
		fail      func(near, far *netsim.End, fails bool)
		mostLost  int // datagrams of 160 B
		movesWhen string
	}{
		{"both ways", func(near, far *netsim.End, fails bool) { near.Mute(fails); far.Mute(fails) }, 125, "silent"},
		{"on the way there", func(near, far *netsim.End, fails bool) { near.Mute(fails) }, 125, "silent"},
		{"on the way back", func(near, far *netsim.End, fails bool) { far.Mute(fails) }, 125, "silent"},
		{"four in five", func(near, far *netsim.End, fails bool) {
			share := 0.0
			if fails {
				share = 0.8
			}
			near.Lose(share)
		}, 150, "loses"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTwoPaths(t, time.Minute)
				defer p.close()
				near, far := p.join(lossyPath)
				p.join(orderedPath)
				v := p.talk()
				if sent, back := v.run(10 * time.Second); back != sent {
					t.Fatalf("%d of %d came back over sound paths", back, sent)
				}
				test.fail(near, far, true)
				sent, back := v.run(10 * time.Second)
				t.Logf("%d of %d lost, a gap of %v", sent-back, sent, v.gap)
				if lost := sent - back; lost == 0 || lost > test.mostLost || v.gap > 3*time.Second {
					t.Errorf("%d of %d lost, a gap of %v; want at most %d and 3 s", lost, sent, v.gap, test.mostLost)
				}
				if p.said(test.movesWhen) == 0 {
					t.Errorf("events %q say nothing of %q", p.events, test.movesWhen)
				}
				if sent, back := v.run(10 * time.Second); back != sent {
					t.Errorf("%d of %d came back once moved", back, sent)
				}
				test.fail(near, far, false)
				if sent, back := v.run(10 * time.Minute); back != sent {
					t.Errorf("%d of %d came back once the path did", back, sent)
				}
				if there, back := p.said("datagrams moved to yamux"), p.said("datagrams moved to quic"); there != 1 || back != 1 {
					t.Errorf("moved away %d times and back %d times: %q", there, back, p.events)
				}
				if d, _ := p.session.serving(); d.Kind() != carrier.KindQUIC {
					t.Errorf("datagrams are on %v", d.Kind())
				}
				v.check(t)
			})
		})
	}
}

// It has answered at least, which the silent one has not.
func TestAReplacementServesAtOnceWhereTheOtherIsSilent(t *testing.T) {
	for _, cfg := range []netsim.Config{lossyPath, orderedPath} {
		t.Run(cfg.Traits.Kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTwoPaths(t, time.Minute)
				defer p.close()
				near, far := p.join(cfg)
				v := p.talk()
				v.run(3 * time.Second)
				near.Mute(true)
				far.Mute(true)
				v.run(4 * time.Second)
				p.join(cfg)
				if sent, back := v.run(2 * time.Second); back < sent-1 {
					t.Errorf("%d of %d came back over the replacement; only the first may miss it", back, sent)
				}
				v.check(t)
			})
		})
	}
}

// A connection can be made where most packets are lost.
func TestAReplacementOfASuspectHasToProveItselfFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		near, _ := p.join(lossyPath)
		p.join(orderedPath)
		v := p.talk()
		v.run(3 * time.Second)
		near.Lose(0.6)
		v.run(3 * time.Second)
		bad := lossyPath
		bad.Loss = 0.6
		again, far := p.join(bad)
		if !p.session.Healthy(carrier.KindQUIC) {
			t.Error("the client would dial yet another")
		}
		if sent, back := v.run(10 * time.Second); sent != back {
			t.Errorf("%d of %d came back: they went over the replacement", back, sent)
		}
		again.Lose(0)
		far.Lose(0)
		v.run(20 * time.Second)
		if d, _ := p.session.serving(); d.Kind() != carrier.KindQUIC {
			t.Errorf("datagrams are on %v though the replacement works: %q", d.Kind(), p.events)
		}
		v.check(t)
	})
}

func TestLargeBundlesAreLostFor3SecondsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		near, far := p.join(lossyPath)
		p.join(orderedPath)
		v := p.talk()
		v.run(3 * time.Second)
		var s sink
		large := p.open(&s)
		near.Eat(1300)
		far.Eat(1300)
		const each = 50 * time.Millisecond
		const n = 200
		for range n {
			large.Send([]udpio.Message{{Body: make([]byte, 1380)}})
			time.Sleep(each)
		}
		sent, back := v.run(time.Second)
		got, _ := s.snapshot()
		lost := n - len(got)
		t.Logf("%d of %d large ones lost", lost, n)
		if lost == 0 || time.Duration(lost)*each > 3*time.Second || back != sent {
			t.Errorf("%d of %d large datagrams lost, %d of %d small ones", lost, n, sent-back, sent)
		}
		if p.said("loses all above") == 0 {
			t.Errorf("events: %q", p.events)
		}
	})
}

// Without another carrier there is nowhere to go: bundles become small enough.
func TestOverOneCarrierBundlesShrinkToWhatThePathTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		near, far := p.join(lossyPath)
		var s sink
		large := p.open(&s)
		near.Eat(1300)
		far.Eat(1300)
		v := p.talk()
		v.run(time.Second)
		const each = 50 * time.Millisecond
		for range 200 {
			large.Send([]udpio.Message{{Body: make([]byte, 1380)}})
			send(v.flow, "0000")
			time.Sleep(each)
		}
		time.Sleep(time.Second)
		got, _ := s.snapshot()
		if lost := 200 - len(got); time.Duration(lost)*each > 4*time.Second {
			t.Errorf("%d of 200 large datagrams lost", lost)
		}
	})
}

func TestStreamsLeaveASuspectAndOldOnesOutliveAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		p.join(lossyPath)
		near, far := p.join(orderedPath)
		old, _, err := p.session.OpenStream(context.Background(), []byte("target"))
		if err != nil {
			t.Fatal(err)
		}
		near.Mute(true)
		far.Mute(true)
		time.Sleep(3 * time.Second) // in use: it was just opened
		_, st := p.session.serving()
		if st.Kind() != carrier.KindQUIC {
			t.Errorf("new streams are on %v: %q", st.Kind(), p.events)
		}
		// Another carrier of the kind comes; the old one stays for its stream.
		p.join(orderedPath)
		near.Mute(false)
		far.Mute(false)
		time.Sleep(10 * time.Second)
		if _, err := old.Write([]byte("a")); err != nil {
			t.Fatal(err)
		}
		if n := len(p.session.Paths()); n != 3 {
			t.Errorf("%d carriers while a stream is open, want 3", n)
		}
		b := make([]byte, 1)
		if _, err := io.ReadFull(old, b); err != nil || b[0] != 'a' {
			t.Errorf("the old stream: %q, %v", b, err)
		}
		_ = old.CloseWrite()
		if _, err := old.Read(b); err != io.EOF {
			t.Errorf("the end of the old stream: %v", err)
		}
		old.Reset(carrier.CodeNone)
		time.Sleep(time.Second)
		if n := len(p.session.Paths()); n != 2 {
			t.Errorf("%d carriers once its stream has ended, want 2", n)
		}
	})
}

func TestADeadCarriersStreamsAreResetAndNeverEndCleanly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		near, far := p.join(orderedPath)
		st, _, err := p.session.OpenStream(context.Background(), []byte("target"))
		if err != nil {
			t.Fatal(err)
		}
		near.Mute(true)
		far.Mute(true)
		began := time.Now()
		_, err = st.Read(make([]byte, 1))
		if reset := (*carrier.ResetError)(nil); !errors.As(err, &reset) {
			t.Errorf("the stream ended with %v, want a reset", err)
		}
		if d := time.Since(began); d < 29*time.Second || d > 42*time.Second {
			t.Errorf("after %v, want 30 s and at most an idle ping's interval", d)
		}
		st.Reset(carrier.CodeNone)
	})
}

func TestADetachedSessionIsHeldAndThenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, 2*time.Minute)
		defer p.close()
		near, _ := p.join(lossyPath)
		v := p.talk()
		v.run(time.Second)
		near.Break(errors.New("cut"))
		time.Sleep(119 * time.Second)
		near, _ = p.join(lossyPath)
		if sent, back := v.run(time.Second); sent != back {
			t.Errorf("%d of %d came back after the pause", back, sent)
		}
		if opened, ended := p.exit.counts(); opened != 1 || ended != 0 {
			t.Errorf("the exit opened %d flows and %d ended, want the first one still", opened, ended)
		}
		near.Break(errors.New("cut"))
		time.Sleep(2*time.Minute + time.Second)
		if n := len(p.host.Sessions()); n != 0 {
			t.Errorf("%d sessions are held for longer than the hold", n)
		}
		if _, ended := p.exit.counts(); ended != 1 {
			t.Errorf("%d flows ended with the session, want 1", ended)
		}
		p.join(lossyPath)
		if sent, back := v.run(time.Second); sent != back {
			t.Errorf("%d of %d came back over the next session", back, sent)
		}
		v.check(t)
	})
}

func TestDrainingServerRefusesNewClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		near, _ := p.join(lossyPath)
		v := p.talk()
		v.run(time.Second)
		p.host.Drain(time.Minute)
		time.Sleep(100 * time.Millisecond)
		if !p.session.Leaving() || p.host.Idle() {
			t.Errorf("leaving %v, idle %v; want true, false", p.session.Leaving(), p.host.Idle())
		}
		other := NewSession(SessionConfig{Transports: testTransports})
		defer other.Close(carrier.CodeNone, "")
		_, _, err, _ := p.attach(other, alice, netsim.Config{})
		if refusal := (*carrier.CloseError)(nil); !errors.As(err, &refusal) || refusal.Code != carrier.CodeDraining {
			t.Errorf("a new client got %v, want a refusal with code %d", err, carrier.CodeDraining)
		}
		// Whom it knows it still lets in, and tells again.
		near.Break(errors.New("cut"))
		p.join(lossyPath)
		if sent, back := v.run(time.Second); sent != back || !p.session.Leaving() {
			t.Errorf("%d of %d came back, leaving %v", back, sent, p.session.Leaving())
		}
		v.flow.End(EndNormal)
		time.Sleep(time.Second)
		if !p.host.Idle() {
			t.Error("not idle without a flow")
		}
		// The next process drains no longer.
		p.host.Close(carrier.CodeShutdown, "")
		p.host = p.newHost()
		p.join(lossyPath)
		if p.session.Leaving() {
			t.Error("still leaving a server that has come back")
		}
	})
}

func TestFullServerEndsLongestHeldSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.host.cfg.Hold = time.Hour
		defer w.close()
		var sessions []*Session
		for i := range maxSessions + 1 {
			s := NewSession(SessionConfig{Transports: testTransports})
			sessions = append(sessions, s)
			p, _, errNear, errFar := w.attach(s, Credentials{User: fmt.Sprint("user", i), Token: "right"}, netsim.Config{})
			if err := errors.Join(errNear, errFar); err != nil {
				t.Fatal(err)
			}
			p.c.(*netsim.End).Break(errors.New("cut"))
			<-p.Done()
			time.Sleep(time.Millisecond)
		}
		ids := make(map[SessionID]bool)
		for _, s := range w.host.Sessions() {
			ids[s.inc.id] = true
		}
		if len(ids) != maxSessions || ids[sessions[0].inc.id] || !ids[sessions[1].inc.id] {
			t.Errorf("%d sessions, the first among them %v, the second %v", len(ids), ids[sessions[0].inc.id], ids[sessions[1].inc.id])
		}
		for _, s := range sessions {
			s.Close(carrier.CodeShutdown, "")
		}
	})
}

func TestAClientThatGoesIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Hour)
		defer p.close()
		p.join(lossyPath)
		v := p.talk()
		v.run(time.Second)
		p.session.Close(carrier.CodeShutdown, "the client is shutting down")
		time.Sleep(time.Second)
		if n := len(p.host.Sessions()); n != 0 {
			t.Errorf("%d sessions are held for a client that said that it goes", n)
		}
	})
}

// Whatever the network does, a flow neither ends nor sees a datagram twice, and
// what is lost is lost while a path was bad.
func TestRandomEventsEndNothing(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomEvents(t, rand.New(rand.NewPCG(seed, 3))) })
		})
	}
}

func randomEvents(t *testing.T, dice *rand.Rand) {
	p := newTwoPaths(t, 2*time.Minute)
	defer p.close()
	var ends [2][2]*netsim.End // by path, by side
	configs := [2]netsim.Config{lossyPath, orderedPath}
	for i, cfg := range configs {
		ends[i][0], ends[i][1] = p.join(cfg)
	}
	v := p.talk()
	var said []string
	for began := time.Now(); time.Since(began) < 10*time.Minute; {
		i := dice.IntN(2)
		e := ends[i]
		what := ""
		switch dice.IntN(6) {
		case 0:
			what = "cut and back"
			e[0].Break(errors.New("cut"))
			time.Sleep(time.Duration(dice.IntN(3000)) * time.Millisecond)
			ends[i][0], ends[i][1] = p.join(configs[i])
		case 1:
			what = "all cut, back in another order"
			for j := range ends {
				ends[j][0].Break(errors.New("cut"))
			}
			time.Sleep(time.Duration(dice.IntN(60000)) * time.Millisecond)
			for _, j := range dice.Perm(2) {
				ends[j][0], ends[j][1] = p.join(configs[j])
			}
		case 2:
			what = "silent for a while"
			e[0].Mute(dice.IntN(2) == 0)
			e[1].Mute(dice.IntN(2) == 0)
		case 3:
			what = "loss"
			e[dice.IntN(2)].Lose(dice.Float64())
		case 4:
			what = "large ones vanish"
			e[dice.IntN(2)].Eat(1150 + dice.IntN(300))
		case 5:
			what = "another connection beside"
			ends[i][0], ends[i][1] = p.join(configs[i])
		}
		said = append(said, fmt.Sprintf("%v: %s on %v", time.Since(began).Round(time.Second), what, configs[i].Traits.Kind))
		v.run(time.Duration(dice.IntN(8000)) * time.Millisecond)
		for _, end := range ends[i] {
			end.Mute(false)
			end.Lose(0)
			end.Eat(0)
		}
		if p.session.Healthy(0) {
			continue
		}
		ends[0][0], ends[0][1] = p.join(configs[0])
	}
	v.run(40 * time.Second)
	if sent, back := v.run(20 * time.Second); sent != back {
		t.Errorf("%d of %d came back over sound paths in the end", back, sent)
	}
	v.check(t)
	if opened, ended := p.exit.counts(); opened != 1 || ended != 0 {
		t.Errorf("the exit opened %d flows and %d ended", opened, ended)
	}
	if n := len(p.session.Paths()); n > 4 {
		t.Errorf("%d carriers are attached", n)
	}
	v.flow.End(EndNormal)
	time.Sleep(time.Second)
	if n := p.host.Sessions()[0].Flows(); n != 0 {
		t.Errorf("%d flows are left over", n)
	}
	if t.Failed() {
		t.Logf("what happened: %s", strings.Join(said, "\n"))
	}
}

func TestOneUserCannotPushOutTheSessionsOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Hour)
		defer p.close()
		near, _ := p.join(orderedPath)
		near.Break(errors.New("cut"))
		time.Sleep(time.Second)
		w := &world{t: t, host: p.host}
		var sessions []*Session
		for i := range maxUserSessions + 1 {
			s := NewSession(SessionConfig{Transports: testTransports})
			sessions = append(sessions, s)
			_, _, errNear, _ := w.attach(s, Credentials{User: "mallory", Token: alice.Token}, netsim.Config{})
			var refused *carrier.CloseError
			if last := i == maxUserSessions; last != errors.As(errNear, &refused) || last && refused.Code != carrier.CodeLimit {
				t.Fatalf("session %d: %v", i, errNear)
			}
		}
		if n := len(p.host.Sessions()); n != maxUserSessions+1 {
			t.Errorf("%d sessions, want mallory's %d and alice's", n, maxUserSessions)
		}
		for _, s := range sessions {
			s.Close(carrier.CodeShutdown, "")
		}
	})
}

func TestOneWayCarrierIsDeadAfter30Seconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		p.join(lossyPath)
		_, far := p.join(orderedPath)
		st, _, err := p.session.OpenStream(context.Background(), []byte("target"))
		if err != nil {
			t.Fatal(err)
		}
		far.Mute(true) // the server hears every ping, and control goes on
		_ = st.SetDeadline(time.Now().Add(time.Minute))
		began := time.Now()
		_, err = st.Read(make([]byte, 1))
		if reset := (*carrier.ResetError)(nil); !errors.As(err, &reset) {
			t.Errorf("after %v: %v, want a reset", time.Since(began), err)
		}
		if d := time.Since(began); d < 29*time.Second || d > 42*time.Second {
			t.Errorf("after %v, want 30 s", d)
		}
		st.Reset(carrier.CodeNone)
	})
}

func TestADownloadOutlivesSeveralPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		p.join(lossyPath)
		var ends []*netsim.End
		join := func() {
			near, far := p.join(orderedPath)
			ends = append(ends, near, far)
		}
		join()
		old, _, err := p.session.OpenStream(context.Background(), []byte("target"))
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			for _, e := range ends {
				e.Mute(true)
			}
			time.Sleep(3 * time.Second)
			for _, e := range ends {
				e.Mute(false)
			}
			if !p.session.Healthy(carrier.KindYamux) {
				join()
			}
			time.Sleep(time.Second)
		}
		if _, err := old.Write([]byte("a")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(old, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		old.Reset(carrier.CodeNone)
	})
}

func TestWhatWaitsWhileNothingIsAttachedIsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Hour)
		defer p.close()
		near, _ := p.join(orderedPath)
		v := p.talk()
		near.Break(errors.New("cut"))
		time.Sleep(time.Second)
		v.flow.Send(slices.Repeat([]udpio.Message{{Body: make([]byte, 1000)}}, 5000))
		if n := p.session.q.Waiting(); n > detachedBytes {
			t.Errorf("%d bytes wait for nobody", n)
		}
	})
}
