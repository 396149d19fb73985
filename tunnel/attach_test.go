package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/netsim"
	"wmproxy/internal/user"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/wire"
)

// tally is what both ends have of one another, for tests to compare.
type tally struct {
	sessions  int // at the server
	carriers  int // of all clients
	served    int // carriers, at the server
	flows     int // of all clients
	farFlows  int // at the server
	attaching int // at the server
}

func (p *twoPaths) tally(clients ...*Session) (n tally) {
	for _, s := range append(clients, p.session) {
		n.carriers += len(s.Paths())
		n.flows += s.Flows()
	}
	for _, s := range p.host.Sessions() {
		n.sessions++
		n.served += len(s.Paths())
		n.farFlows += s.Flows()
		s.mu.Lock()
		n.attaching += s.holds
		s.mu.Unlock()
	}
	return n
}

// expect compares what both ends have with what they should.
func (p *twoPaths) expect(when string, want tally, clients ...*Session) {
	p.t.Helper()
	synctest.Wait()
	if got := p.tally(clients...); got != want {
		p.t.Errorf("%s: %+v, want %+v", when, got, want)
	}
}

// gone expects that nothing is left of the clients, all of which it closes.
func (p *twoPaths) gone(clients ...*Session) {
	p.t.Helper()
	for _, s := range append(clients, p.session) {
		s.Close(carrier.CodeShutdown, "done")
	}
	time.Sleep(time.Second)
	p.expect("once the clients have gone", tally{}, clients...)
	opened, ended := p.exit.counts()
	if opened != ended {
		p.t.Errorf("the exit opened %d flows, of which %d ended", opened, ended)
	}
}

// overheard is a client's end whose HELLOs are noted.
type overheard struct {
	*netsim.End
	hellos *bytes.Buffer
}

func (o overheard) Handshake(ctx context.Context) (io.ReadWriter, error) {
	rw, err := o.End.Handshake(ctx)
	return struct {
		io.Reader
		io.Writer
	}{rw, io.MultiWriter(rw, o.hellos)}, err
}

// overhear attaches and returns the HELLO that this took.
func (p *twoPaths) overhear(cfg netsim.Config) []byte {
	p.t.Helper()
	near, far := netsim.New(cfg, cfg)
	said := new(bytes.Buffer)
	var wg sync.WaitGroup
	var errNear, errFar error
	wg.Go(func() { _, errFar = p.host.Attach(context.Background(), far) })
	wg.Go(func() { _, errNear = p.session.Attach(context.Background(), overheard{near, said}, alice) })
	wg.Wait()
	if err := errors.Join(errNear, errFar); err != nil {
		p.t.Fatal(err)
	}
	return said.Bytes()
}

// say sends message on a connection of its own and returns the server's answer.
func (p *twoPaths) say(cfg netsim.Config, message []byte) (wire.MessageType, error) {
	p.t.Helper()
	near, far := netsim.New(cfg, cfg)
	defer near.Close(carrier.CodeNone, "")
	ctx := context.Background()
	refused := make(chan error, 1)
	go func() {
		_, err := p.host.Attach(ctx, far)
		refused <- err
	}()
	rw, err := near.Handshake(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := rw.Write(message); err != nil {
		p.t.Fatal(err)
	}
	var buf []byte
	answer, _, err := readHandshake(rw, &buf)
	if refusal := (*carrier.CloseError)(nil); errors.As(err, &refusal) {
		answer = wire.MsgRefuse // the connection's end overtook it, and says the same
	} else if err != nil {
		p.t.Fatal(err)
	}
	near.Close(carrier.CodeNone, "")
	return answer, <-refused
}

func isRefusal(err error, code carrier.ErrorCode) bool {
	refusal := (*carrier.CloseError)(nil)
	return errors.As(err, &refusal) && refusal.Code == code
}

// A proof is good for the connection that it was made on. The first HELLO of a
// session has its secret beside it, later ones do not.
func TestAReplayedProofIsWorthNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		first := p.overhear(lossyPath)
		v := p.talk()
		v.run(time.Second)
		second := p.overhear(orderedPath)
		want := tally{sessions: 1, carriers: 2, served: 2, flows: 1, farFlows: 1}
		p.expect("attached", want)
		for name, replay := range map[string]struct {
			hello []byte
			over  netsim.Config
		}{
			"the first":                      {first, lossyPath},
			"a later one":                    {second, orderedPath},
			"the first, over another kind":   {first, orderedPath},
			"a later one, over another kind": {second, lossyPath},
			"a later one, in memory":         {second, netsim.Config{}},
		} {
			if answer, err := p.say(replay.over, replay.hello); answer != wire.MsgRefuse || !isRefusal(err, carrier.CodeSession) {
				t.Errorf("%s: answer %d, %v; want a refusal with code %d", name, answer, err, carrier.CodeSession)
			}
		}
		p.expect("after the replays", want)
		if sent, back := v.run(time.Second); sent != back {
			t.Errorf("%d of %d came back after the replays", back, sent)
		}
		v.check(t)

		// Once the session is forgotten the first makes no other, and the later one
		// meets the demand for a new one.
		for _, a := range p.session.Paths() {
			a.c.(*netsim.End).Break(errors.New("cut"))
		}
		time.Sleep(2 * time.Minute)
		p.expect("forgotten", tally{flows: 1})
		if answer, err := p.say(lossyPath, first); answer != wire.MsgRefuse || !isRefusal(err, carrier.CodeSession) {
			t.Errorf("the first, of a forgotten session: answer %d, %v", answer, err)
		}
		if answer, err := p.say(orderedPath, second); answer != wire.MsgRenew || err == nil {
			t.Errorf("a later one, of a forgotten session: answer %d, %v", answer, err)
		}
		p.expect("after the last replays", tally{flows: 1})
		p.gone()
	})
}

// One who knows the id has to know the secret too, and be the same user.
func TestOfASessionTheIDIsNotEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		p.join(lossyPath)
		v := p.talk()
		v.run(time.Second)
		bob, carol := Credentials{User: "bob", Token: "right"}, Credentials{User: "carol", Token: "right"}
		var others []*Session
		for _, c := range []struct {
			name      string
			cred      Credentials
			secret    bool // is known
			confirmed bool // the secret does not travel
			refused   bool
			renewed   bool
		}{
			{"alice with another secret", alice, false, false, true, false},
			{"alice with another secret that she does not send", alice, false, true, true, false},
			{"bob with another secret", bob, false, false, false, false},
			{"carol with hers", carol, true, true, false, true},
		} {
			other := NewSession(SessionConfig{Transports: testTransports})
			others = append(others, other)
			in := *p.session.current()
			if !c.secret {
				in.secret = newIncarnation().secret
			}
			in.confirmed = c.confirmed
			other.inc = &in
			w := &world{t: t, host: p.host}
			a, _, err, _ := w.attach(other, c.cred, lossyPath)
			if c.refused != isRefusal(err, carrier.CodeSession) || !c.refused && err != nil {
				t.Errorf("%s: %v; refused %v", c.name, err, c.refused)
			}
			if err == nil && (a.Resumed() || (other.current().id != p.session.current().id) != c.renewed) {
				t.Errorf("%s: resumed %v, another id %v; want false, %v", c.name, a.Resumed(), other.current().id != p.session.current().id, c.renewed)
			}
		}
		// They have sessions of their own, in which her flow is not.
		p.expect("beside the others", tally{sessions: 3, carriers: 3, served: 3, flows: 1, farFlows: 1}, others...)
		for _, s := range p.host.Sessions() {
			if s.User().Name != "alice" && s.Flows() > 0 || s.User().Name == "alice" && len(s.Paths()) != 1 {
				t.Errorf("%s has %d flows over %d carriers", s.User().Name, s.Flows(), len(s.Paths()))
			}
		}
		if sent, back := v.run(time.Second); sent != back {
			t.Errorf("%d of %d came back beside the others", back, sent)
		}
		v.check(t)
		p.gone(others...)
	})
}

func TestAnExpiredSessionIsMadeAnewWithItsFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		near, _ := p.join(lossyPath)
		v := p.talk()
		silent := p.open(&sink{}) // says nothing before the session expires
		v.run(time.Second)
		id := p.session.current().id
		near.Break(errors.New("cut"))
		time.Sleep(time.Minute - time.Millisecond)
		p.expect("just held", tally{sessions: 1, flows: 2, farFlows: 1})
		time.Sleep(2 * time.Millisecond)
		p.expect("expired", tally{flows: 2})

		p.join(orderedPath)
		if a := p.session.Paths()[0]; a.Resumed() || p.session.current().id == id {
			t.Errorf("resumed %v, the same id %v", a.Resumed(), p.session.current().id == id)
		}
		send(silent, "only now")
		if sent, back := v.run(time.Second); sent != back {
			t.Errorf("%d of %d came back over the new session", back, sent)
		}
		p.expect("made anew", tally{sessions: 1, carriers: 1, served: 1, flows: 2, farFlows: 2})
		if opened, ended := p.exit.counts(); opened != 3 || ended != 1 {
			t.Errorf("the exit opened %d flows and %d ended, want 3 and 1", opened, ended)
		}
		v.check(t)
		p.gone()
	})
}

// A session that is taken up at the very moment when its hold ends is either
// resumed or made anew, and it is the only one.
func TestAtTheEndOfTheHoldAClientGetsInEitherWay(t *testing.T) {
	for _, early := range []time.Duration{30 * time.Millisecond, 20 * time.Millisecond, 10 * time.Millisecond, 0, -time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			p := newTwoPaths(t, time.Minute)
			defer p.close()
			cfg := lossyPath
			cfg.Delay = 10 * time.Millisecond
			near, _ := p.join(cfg)
			v := p.talk()
			v.run(time.Second)
			near.Break(errors.New("cut"))
			time.Sleep(time.Minute - early)
			p.join(cfg)
			if sent, back := v.run(time.Second); sent != back {
				t.Errorf("%v before the end: %d of %d came back", early, back, sent)
			}
			time.Sleep(2 * time.Minute)
			p.expect(early.String(), tally{sessions: 1, carriers: 1, served: 1, flows: 1, farFlows: 1})
			v.check(t)
			p.gone()
		})
	}
}

// unheard is a client's end that dies without a word: its close reaches nobody.
type unheard struct{ *netsim.End }

func (unheard) Close(carrier.ErrorCode, string) {}

// loseWelcome has the client dial in vain: the server attaches it, and the welcome
// and all that follows is lost.
func (p *twoPaths) loseWelcome(cfg netsim.Config) (far *Path) {
	p.t.Helper()
	c, s := netsim.New(cfg, cfg)
	s.Mute(true)
	var wg sync.WaitGroup
	var errNear, errFar error
	wg.Go(func() { far, errFar = p.host.Attach(context.Background(), s) })
	wg.Go(func() { _, errNear = p.session.Attach(context.Background(), unheard{c}, alice) })
	wg.Wait()
	if !carrier.IsTimeout(errNear) || errFar != nil {
		p.t.Fatalf("without a welcome: client %v, server %v", errNear, errFar)
	}
	return far
}

func TestALostWelcomeLeavesOneSession(t *testing.T) {
	for name, before := range map[string]bool{"of the first attach": false, "of a later one": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTwoPaths(t, time.Minute)
				defer p.close()
				v := p.talk()
				if before {
					near, _ := p.join(lossyPath)
					v.run(time.Second)
					near.Break(errors.New("cut"))
				}
				id := p.session.current().id
				orphan := p.loseWelcome(lossyPath)
				began := time.Now()
				p.join(lossyPath)
				if a := p.session.Paths()[0]; !a.Resumed() || p.session.current().id != id {
					t.Errorf("resumed %v, another id %v: the server made two sessions", a.Resumed(), p.session.current().id != id)
				}
				if sent, back := v.run(time.Second); sent != back {
					t.Errorf("%d of %d came back", back, sent)
				}
				p.expect("while the orphan lives", tally{sessions: 1, carriers: 1, served: 2, flows: 1, farFlows: 1})
				<-orphan.Done()
				if d := time.Since(began); d > 31*time.Second {
					t.Errorf("the orphan lived for %v, want 30 s", d)
				}
				p.expect("after it", tally{sessions: 1, carriers: 1, served: 1, flows: 1, farFlows: 1})
				if sent, back := v.run(time.Second); sent != back {
					t.Errorf("%d of %d came back after the orphan", back, sent)
				}
				if opened, ended := p.exit.counts(); opened != 1 || ended != 0 {
					t.Errorf("the exit opened %d flows and %d ended, want 1 and 0", opened, ended)
				}
				v.check(t)
				p.gone()
			})
		})
	}
}

// However many welcomes are lost, what they leave is bounded, and is gone in the end.
func TestWelcomesThatAreLostAgainAndAgainLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		for range 5 {
			p.loseWelcome(orderedPath)
			if n := p.tally(); n.sessions != 1 || n.served > maxPerKind {
				t.Errorf("%+v, want one session with at most %d carriers", n, maxPerKind)
			}
		}
		time.Sleep(35*time.Second + time.Minute)
		p.expect("in the end", tally{})
		p.gone()
	})
}

func TestRacingDialsMakeOneSession(t *testing.T) {
	for name, before := range map[string]func(p *twoPaths){
		"at first": func(*twoPaths) {},
		"after the session has expired": func(p *twoPaths) {
			near, _ := p.join(lossyPath)
			near.Break(errors.New("cut"))
			time.Sleep(2 * time.Minute)
		},
		"after the server's restart": func(p *twoPaths) {
			p.join(lossyPath)
			p.host.Close(carrier.CodeShutdown, "restart")
			p.host = newTwoPaths(p.t, time.Minute).host
			p.host.cfg.Exit = func(*user.User) Exit { return p.exit }
		},
		"while it is held": func(p *twoPaths) {
			near, _ := p.join(lossyPath)
			near.Break(errors.New("cut"))
			time.Sleep(time.Second)
		},
	} {
		for _, second := range []netsim.Config{lossyPath, orderedPath} {
			for _, later := range []time.Duration{0, time.Millisecond, 25 * time.Millisecond, 60 * time.Millisecond} {
				t.Run(name+", "+second.Traits.Kind.String()+" "+later.String(), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						p := newTwoPaths(t, time.Minute)
						defer p.close()
						before(p)
						v := p.talk()
						w := &world{t: t, host: p.host}
						var dials sync.WaitGroup
						dials.Go(func() { _, _, _, _ = w.attach(p.session, alice, lossyPath) })
						dials.Go(func() {
							time.Sleep(later)
							_, _, _, _ = w.attach(p.session, alice, second)
						})
						dials.Wait()
						if sent, back := v.run(5 * time.Second); sent != back {
							t.Errorf("%d of %d came back", back, sent)
						}
						carriers := 1 // the newer of a kind takes the place of the older
						if second.Traits.Kind != lossyPath.Traits.Kind {
							carriers = 2
						}
						p.expect("raced", tally{sessions: 1, carriers: carriers, served: carriers, flows: 1, farFlows: 1})
						v.check(t)
						p.gone()
					})
				})
			}
		}
	}
}

// The client may dial again though the carrier that it has is well, or that
// the server has not missed yet.
func TestResumingBesideALivingCarrierCostsNothing(t *testing.T) {
	for _, cfg := range []netsim.Config{lossyPath, orderedPath} {
		t.Run(cfg.Traits.Kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTwoPaths(t, time.Minute)
				defer p.close()
				p.join(cfg)
				st, _, err := p.session.OpenStream(context.Background(), []byte("target"))
				if err != nil {
					t.Fatal(err)
				}
				v := p.talk()
				go func() {
					for range 5 {
						time.Sleep(time.Second)
						p.join(cfg)
					}
				}()
				if sent, back := v.run(10 * time.Second); sent != back {
					t.Errorf("%d of %d came back", back, sent)
				}
				// The newest serves, and the first stays for its stream.
				p.expect("resumed five times", tally{sessions: 1, carriers: 2, served: 2, flows: 1, farFlows: 1})
				_ = st.SetDeadline(time.Now().Add(time.Second))
				if _, err := st.Write([]byte("a")); err != nil {
					t.Error(err)
				}
				if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
					t.Errorf("the stream of a carrier that was superseded: %v", err)
				}
				st.Reset(carrier.CodeNone)
				time.Sleep(2 * retireGrace)
				p.expect("without the stream", tally{sessions: 1, carriers: 1, served: 1, flows: 1, farFlows: 1})
				if n := p.host.Sessions()[0].streams.Load(); n != 0 {
					t.Errorf("%d streams are left over at the server", n)
				}
				if opened, ended := p.exit.counts(); opened != 1 || ended != 0 {
					t.Errorf("the exit opened %d flows and %d ended, want 1 and 0", opened, ended)
				}
				v.check(t)
				p.gone()
			})
		})
	}
}

// Their flows have the same numbers, since each counts for itself.
func TestTwoClientsWithOneTokenDoNotMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		q := &twoPaths{world: &world{t: t, exit: p.exit, host: p.host, session: NewSession(SessionConfig{Transports: testTransports})}}
		near, _ := p.join(lossyPath)
		var wg sync.WaitGroup
		var v, w *voice
		wg.Go(func() { v = p.talk() })
		wg.Go(func() {
			q.join(lossyPath)
			w = q.talk()
		})
		wg.Wait()
		if v.flow.ID() != w.flow.ID() {
			t.Fatalf("flows %d and %d, want the same number", v.flow.ID(), w.flow.ID())
		}
		wg.Go(func() { v.run(time.Second) })
		sent, back := w.run(time.Second)
		wg.Wait()
		if sent != back {
			t.Errorf("%d of %d came back beside another client", back, sent)
		}
		both := tally{sessions: 2, carriers: 2, served: 2, flows: 2, farFlows: 2}
		p.expect("both", both, q.session)

		// What one of them meets does not touch the other.
		near.Break(errors.New("cut"))
		if sent, back := w.run(time.Second); sent != back {
			t.Errorf("%d of %d came back while the other was cut off", back, sent)
		}
		p.join(lossyPath)
		if sent, back := v.run(time.Second); sent != back {
			t.Errorf("%d of %d came back once it was back", back, sent)
		}
		p.expect("both again", both, q.session)
		v.flow.End(EndNormal)
		if sent, back := w.run(time.Second); sent != back {
			t.Errorf("%d of %d came back after the other's flow of that number had ended", back, sent)
		}
		v.check(t)
		p.session.Close(carrier.CodeShutdown, "done")
		if sent, back := w.run(time.Second); sent != back {
			t.Errorf("%d of %d came back after the other had gone", back, sent)
		}
		p.expect("one", tally{sessions: 1, carriers: 1, served: 1, flows: 1, farFlows: 1}, q.session)
		w.check(t)
		p.gone(q.session)
	})
}

// Nothing is held for a client that went before it was all the way in.
func TestAClientThatGoesWhileItAttachesIsNotWaitedFor(t *testing.T) {
	for wait := time.Duration(0); wait <= 100*time.Millisecond; wait += 5 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			p := newTwoPaths(t, time.Hour)
			defer p.close()
			w := &world{t: t, host: p.host}
			var dial sync.WaitGroup
			dial.Go(func() { _, _, _, _ = w.attach(p.session, alice, lossyPath) })
			time.Sleep(wait)
			p.session.Close(carrier.CodeShutdown, "done")
			dial.Wait()
			time.Sleep(time.Second)
			p.expect(wait.String(), tally{})
		})
	}
}

func TestAWallClockThatJumpsHarmsNothing(t *testing.T) {
	for name, used := range map[string]bool{"in use": true, "idle": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTwoPaths(t, time.Minute)
				defer p.close()
				var mu sync.Mutex
				var off time.Duration
				p.session.wall = func() time.Time {
					mu.Lock()
					defer mu.Unlock()
					return time.Now().Round(0).Add(off)
				}
				p.join(lossyPath)
				p.join(orderedPath)
				st, _, err := p.session.OpenStream(context.Background(), []byte("target"))
				if err != nil {
					t.Fatal(err)
				}
				v := p.talk()
				v.run(time.Second)
				before := p.said("")
				for _, jump := range []time.Duration{time.Hour, -2 * time.Hour, 10 * 365 * 24 * time.Hour, 4 * time.Second, -time.Minute} {
					mu.Lock()
					off += jump
					mu.Unlock()
					if !used {
						time.Sleep(time.Minute)
					}
					if sent, back := v.run(5 * time.Second); sent != back {
						t.Errorf("after a jump by %v: %d of %d came back", jump, back, sent)
					}
					for _, a := range p.session.Paths() {
						if good, why := a.good(); !good {
							t.Errorf("after a jump by %v: %v %s", jump, a.Kind(), why)
						}
					}
				}
				p.expect("in the end", tally{sessions: 1, carriers: 2, served: 2, flows: 1, farFlows: 1})
				if p.said("") != before {
					t.Errorf("events: %q", p.events)
				}
				if _, err := st.Write([]byte("a")); err != nil {
					t.Error(err)
				}
				if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
					t.Error(err)
				}
				st.Reset(carrier.CodeNone)
				v.check(t)
				p.gone()
			})
		})
	}
}

// After a suspend the wall clock is ahead of the steady one: a path that has died
// meanwhile is left within a second, and not after two as otherwise.
func TestAfterASuspendADeadPathIsLeftWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		var mu sync.Mutex
		var off time.Duration
		p.session.wall = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Round(0).Add(off)
		}
		near, far := p.join(lossyPath)
		p.join(orderedPath)
		v := p.talk()
		v.run(3 * time.Second)
		mu.Lock()
		off = time.Hour
		mu.Unlock()
		near.Mute(true)
		far.Mute(true)
		sent, back := v.run(5 * time.Second)
		if lost := time.Duration(sent-back) * voiceInterval; lost == 0 || lost > 1200*time.Millisecond {
			t.Errorf("datagrams of %v were lost, want at most a ping's interval and half a second", lost)
		}
		v.check(t)
	})
}

// A process that stood still, stopped or on a machine whose steady clock goes on
// in suspend, finds its pings long open. Their answers wait to be read.
func TestAProcessThatStoodStillJudgesNothingByIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		_, far := p.join(lossyPath)
		near := p.session.Paths()[0]
		time.Sleep(time.Second)
		far.Mute(true)
		send(p.open(&sink{}), "in use")
		time.Sleep(time.Second) // a ping is open now
		later := p.session.now() + time.Hour
		c := clocks{steady: p.session.now(), wall: time.Now(), due: p.session.now() + 500*time.Millisecond}
		if slept, stood := c.look(later, time.Now().Add(time.Hour)); slept || !stood {
			t.Errorf("an hour late: slept %v, stood still %v; want false, true", slept, stood)
		}
		if _, _, err := near.probe(later, false, true); err != nil {
			t.Errorf("the client gave its carrier up: %v", err)
		}
		if good, why := near.good(); !good {
			t.Errorf("the carrier is doubted: %s", why)
		}
		synctest.Wait() // a ping leaves
		if _, _, err := near.probe(later+500*time.Millisecond, false, false); err != nil {
			t.Errorf("half a second later: %v", err)
		}
		if good, _ := near.good(); good {
			t.Error("half a second later it is not doubted, though nothing was answered")
		}
		if _, _, err := near.probe(later+31*time.Second, false, false); err == nil {
			t.Error("the carrier is kept though nothing was answered for 30 s since")
		}

		served := p.host.Sessions()[0].Paths()[0]
		if left, err := served.signs(later, later-time.Hour); err != nil || left != 30*time.Second {
			t.Errorf("the server gives its carrier %v more: %v", left, err)
		}
		if _, err := served.signs(later+31*time.Second, later+30*time.Second); err == nil {
			t.Error("the server keeps its carrier though nothing came for 30 s since")
		}
	})
}
