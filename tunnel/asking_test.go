package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/netsim"
	"wmproxy/internal/user"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
	"wmproxy/tunnel/quic"
	"wmproxy/tunnel/tcp"
)

// askingBound is what an entrance gives the far end for its answer.
const askingBound = 20 * time.Second

// ask opens a stream, and closes it at once where that worked. It returns how long
// the answer took.
func (p *twoPaths) ask() (took time.Duration, over carrier.Kind, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), askingBound)
	defer cancel()
	began := time.Now()
	st, _, err := p.session.OpenStream(ctx, []byte("target"))
	took = time.Since(began)
	if err != nil {
		return took, 0, err
	}
	over = st.(*carriedStream).a.Kind()
	if _, werr := st.Write([]byte("a")); werr != nil {
		p.t.Error(werr)
	}
	if _, rerr := io.ReadFull(st, make([]byte, 1)); rerr != nil {
		p.t.Error(rerr)
	}
	_ = st.CloseWrite()
	if _, rerr := st.Read(make([]byte, 1)); rerr != io.EOF {
		p.t.Errorf("the stream's end: %v", rerr)
	}
	st.Reset(carrier.CodeNone)
	return took, over, nil
}

// streamsLeft counts the streams that either side has not let go of.
func (p *twoPaths) streamsLeft() (n int64) {
	synctest.Wait()
	for _, s := range append(p.host.Sessions(), p.session) {
		n += s.streams.Load()
		for _, a := range s.Paths() {
			n += a.streams.Load()
		}
	}
	return n
}

func TestStreamOfSilentCarrierIsRequestedAgain(t *testing.T) {
	for _, c := range []struct {
		name  string
		fails func(near, far *netsim.End)
		asked int // times that the far end hears of it
		most  time.Duration
	}{
		{"both ways", func(near, far *netsim.End) { near.Mute(true); far.Mute(true) }, 1, 3 * time.Second},
		{"on the way there", func(near, _ *netsim.End) { near.Mute(true) }, 1, 3 * time.Second},
		{"on the way back", func(_, far *netsim.End) { far.Mute(true) }, 2, 3 * time.Second},
		{"cut while the answer is under way", func(near, _ *netsim.End) {
			time.AfterFunc(30*time.Millisecond, func() { near.Break(errors.New("cut")) })
		}, 2, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTwoPaths(t, time.Minute)
				defer p.close()
				p.join(lossyPath)
				near, far := p.join(orderedPath)
				time.Sleep(time.Minute) // nobody uses them
				c.fails(near, far)
				took, over, err := p.ask()
				if err != nil || over != carrier.KindQUIC || took > c.most {
					t.Errorf("over %v after %v: %v; want QUIC within %v", over, took, err, c.most)
				}
				if p.exit.streams != c.asked {
					t.Errorf("the far end was asked %d times, want %d", p.exit.streams, c.asked)
				}
				time.Sleep(2 * time.Minute) // what was left on the silent one ends with it
				if n := p.streamsLeft(); n != 0 {
					t.Errorf("%d streams are left over", n)
				}
			})
		})
	}
}

// The one that the client dials in its place is another too.
func TestStreamIsRequestedOverReplacement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		near, far := p.join(orderedPath)
		near.Mute(true)
		far.Mute(true)
		time.AfterFunc(4*time.Second, func() { p.join(orderedPath) })
		took, over, err := p.ask()
		if err != nil || over != carrier.KindYamux || took > 4500*time.Millisecond {
			t.Errorf("over %v after %v: %v; want the replacement, which came after 4 s", over, took, err)
		}
	})
}

func TestAStreamThatNobodyAnswersFailsInTimeAndSaysWhy(t *testing.T) {
	for _, c := range []struct {
		name     string
		another  bool // carrier, that swallows it too
		cutAfter time.Duration
		took     time.Duration
		is       error
	}{
		{"a silent one alone", false, 0, attachWait, ErrUnanswered},
		{"two silent ones", true, 0, attachWait, ErrUnanswered},
		{"one that is cut, and nothing comes after it", false, 3 * time.Second, attachWait, ErrNotAttached},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTwoPaths(t, time.Minute)
				defer p.close()
				near, far := p.join(orderedPath)
				near.Mute(true)
				far.Mute(true)
				if c.another {
					near, far := p.join(lossyPath)
					time.AfterFunc(time.Second, func() {
						near.Mute(true)
						far.Mute(true)
					})
				}
				if c.cutAfter > 0 {
					time.AfterFunc(c.cutAfter, func() { near.Break(errors.New("cut")) })
				}
				took, _, err := p.ask()
				if took < c.took || took > c.took+lookEvery || !errors.Is(err, c.is) {
					t.Errorf("after %v: %v; want %v after %v", took, err, c.is, c.took)
				}
				t.Log(err)
				if n := p.streamsLeft(); n != 0 {
					t.Errorf("%d streams are left over", n)
				}
			})
		})
	}
}

// A carrier of 3 s is in doubt all the time, and lives.
func TestAStreamOverASlowCarrierIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		slow := &slowExit{echoExit: p.exit, takes: 9 * time.Second}
		p.host.cfg.Exit = func(*user.User) Exit { return slow }
		p.join(netsim.Config{Traits: tcp.Traits, Delay: 1500 * time.Millisecond, Queue: 512})
		time.Sleep(time.Minute)
		took, _, err := p.ask()
		if err != nil || took < 12*time.Second || took > 13*time.Second || p.exit.streams != 1 {
			t.Errorf("after %v, asked %d times: %v", took, p.exit.streams, err)
		}
	})
}

// A far end that takes its time is not asked again while the carrier is well,
// nor for a refusal.
func TestAnAnswerThatTakesLongIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		slow := &slowExit{echoExit: p.exit, takes: 15 * time.Second}
		p.host.cfg.Exit = func(*user.User) Exit { return slow }
		p.join(lossyPath)
		p.join(orderedPath)
		took, over, err := p.ask()
		if err != nil || over != carrier.KindYamux || took < 15*time.Second || p.exit.streams != 1 {
			t.Errorf("over %v after %v, asked %d times: %v", over, took, p.exit.streams, err)
		}
		slow.takes = 30 * time.Second
		if took, _, err := p.ask(); took != askingBound || !errors.Is(err, context.DeadlineExceeded) || p.exit.streams != 1 {
			t.Errorf("after %v, asked %d times: %v", took, p.exit.streams, err)
		}
		_, _, err = p.session.OpenStream(context.Background(), []byte("refused"))
		if refused := (*RefusedError)(nil); !errors.As(err, &refused) || refused.Code != 5 {
			t.Errorf("got %v, want reply 5", err)
		}
		time.Sleep(time.Minute)
		if n := p.streamsLeft(); n != 0 {
			t.Errorf("%d streams are left over", n)
		}
	})
}

// quic-go tells streams of a connection's end before it has ended.
func TestStreamOfEndedQUICIsRequestedAgain(t *testing.T) {
	ctx := carriertest.Context(t)
	clientTLS, serverTLS := carriertest.TLS()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := quic.Listen(socket, serverTLS, quic.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := &twoPaths{world: &world{t: t, exit: &echoExit{}}}
	exit := &slowExit{echoExit: p.exit, takes: 200 * time.Millisecond}
	p.host = NewRegistry(RegistryConfig{Authenticate: anyone, Exit: func(*user.User) Exit { return exit }})
	p.session = NewSession(SessionConfig{Transports: testTransports})
	defer p.close()
	far := make(map[*Path]*Path) // of the near ones
	for range 2 {
		accepted := make(chan *Path, 1)
		go func() {
			pending, err := ln.Accept(ctx)
			if err != nil {
				t.Error(err)
				close(accepted)
				return
			}
			a, err := p.host.Attach(ctx, pending)
			if err != nil {
				t.Error(err)
			}
			accepted <- a
		}()
		pending, err := quic.Dial(ctx, nil, ln.Addr().(*net.UDPAddr), clientTLS, 0)
		if err != nil {
			t.Fatal(err)
		}
		a, err := p.session.Attach(ctx, pending, alice)
		if err != nil {
			t.Fatal(err)
		}
		far[a] = <-accepted
	}
	_, on := p.session.serving()
	timer := time.AfterFunc(exit.takes/4, func() { far[on].c.Close(carrier.CodeReplaced, "a test") })
	defer timer.Stop()
	st, _, err := p.session.OpenStream(ctx, []byte("target"))
	if err != nil {
		t.Fatalf("%v (%v)", err, on.Err())
	}
	if st.(*carriedStream).a == on {
		t.Error("the stream is on the connection that has ended")
	}
	st.Reset(carrier.CodeNone)
}

// slowExit is an echo that takes its time to answer.
type slowExit struct {
	*echoExit
	takes time.Duration
}

func (e *slowExit) ServeStream(ctx context.Context, in *IncomingStream) {
	if string(in.Addr) == "target" {
		time.Sleep(e.takes)
	}
	e.echoExit.ServeStream(ctx, in)
}
