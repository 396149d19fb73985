package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/netsim"
	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
	"wmproxy/internal/user"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/queue"
	"wmproxy/tunnel/quic"
	"wmproxy/tunnel/tcp"
)

// echoExit answers every datagram with itself and every stream with its bytes.
type echoExit struct {
	mu      sync.Mutex
	opened  int
	ended   int
	flows   map[uint64]*Flow
	refuse  bool
	streams int
}

func (e *echoExit) OpenFlow(f *Flow) (FlowHandler, EndCode) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.refuse {
		return nil, EndLimit
	}
	e.opened++
	if e.flows == nil {
		e.flows = make(map[uint64]*Flow)
	}
	e.flows[f.ID()] = f
	return &echoFlow{exit: e, flow: f}, 0
}

func (e *echoExit) ServeStream(_ context.Context, in *IncomingStream) {
	e.mu.Lock()
	e.streams++
	e.mu.Unlock()
	if bytes.Equal(in.Addr, []byte("refused")) {
		in.Refuse(5)
		return
	}
	st, err := in.Accept([]byte("bound"))
	if err != nil {
		return
	}
	_, _ = io.Copy(st, st)
	_ = st.CloseWrite()
	st.Reset(carrier.CodeNone)
}

func (e *echoExit) counts() (opened, ended int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.opened, e.ended
}

type echoFlow struct {
	exit *echoExit
	flow *Flow
}

func (f *echoFlow) Receive(bodies [][]byte) {
	ms := make([]udpio.Message, len(bodies))
	for i, b := range bodies {
		ms[i].Body = b
	}
	f.flow.Send(ms)
}

func (f *echoFlow) Ended(EndCode) {
	f.exit.mu.Lock()
	f.exit.ended++
	f.exit.mu.Unlock()
}

// sink collects what comes back on a flow.
type sink struct {
	mu    sync.Mutex
	got   [][]byte
	codes []EndCode
}

func (s *sink) Receive(bodies [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range bodies {
		s.got = append(s.got, bytes.Clone(b))
	}
}

func (s *sink) Ended(code EndCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.codes = append(s.codes, code)
}

func (s *sink) snapshot() (got [][]byte, codes []EndCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([][]byte(nil), s.got...), append([]EndCode(nil), s.codes...)
}

// world is a server and a client's session in memory.
type world struct {
	t       *testing.T
	exit    *echoExit
	host    *Registry
	session *Session
}

var alice = Credentials{User: "alice", Token: "right"}

var users sync.Map // of all tests, by name

// named returns the user of this name.
func named(name string) *user.User {
	u, _ := users.LoadOrStore(name, user.New(name, "", new(stats.Total)))
	return u.(*user.User)
}

// anyone lets everybody in.
func anyone(c Credentials) *user.User { return named(c.User) }

// withToken lets everybody in who has the right token.
func withToken(c Credentials) *user.User {
	if c.Token != "right" {
		return nil
	}
	return named(c.User)
}

// testTransports are those that sessions of tests know of.
var testTransports = []carrier.Traits{quic.Traits, tcp.Traits}

func newWorld(t *testing.T) *world {
	w := &world{t: t, exit: &echoExit{}}
	w.host = w.newHost()
	w.session = NewSession(SessionConfig{Transports: testTransports})
	return w
}

func (w *world) newHost() *Registry {
	return NewRegistry(RegistryConfig{
		Authenticate: withToken,
		Exit:         func(*user.User) Exit { return w.exit },
	})
}

// attach joins session and host by a pipe and returns both ends' paths.
func (w *world) attach(s *Session, cred Credentials, cfg netsim.Config) (near, far *Path, errNear, errFar error) {
	c, srv := netsim.New(cfg, cfg)
	var wg sync.WaitGroup
	wg.Go(func() { far, errFar = w.host.Attach(context.Background(), srv) })
	wg.Go(func() { near, errNear = s.Attach(context.Background(), c, cred) })
	wg.Wait()
	return near, far, errNear, errFar
}

func (w *world) mustAttach(cfg netsim.Config) (near, far *Path) {
	w.t.Helper()
	near, far, errNear, errFar := w.attach(w.session, alice, cfg)
	if errNear != nil || errFar != nil {
		w.t.Fatalf("attach: client %v, server %v", errNear, errFar)
	}
	return near, far
}

func (w *world) close() {
	w.session.Close(carrier.CodeShutdown, "done")
	w.host.Close(carrier.CodeShutdown, "done")
}

func (w *world) open(h FlowHandler) *Flow {
	w.t.Helper()
	f, err := w.session.OpenFlow(h)
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

func send(f *Flow, bodies ...string) {
	ms := make([]udpio.Message, len(bodies))
	for i, b := range bodies {
		ms[i] = udpio.Message{Head: []byte(b[:1]), Body: []byte(b[1:])}
	}
	f.Send(ms)
}

func TestDatagramsGoThereAndBackInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mustAttach(netsim.Config{MaxBundle: 1404, Delay: 20 * time.Millisecond})
		var s sink
		f := w.open(&s)
		want := make([][]byte, 0, 60)
		for i := range 60 {
			b := make([]byte, 1+i*i*18) // up to 62,659 bytes
			rand.Read(b)
			want = append(want, b)
			f.Send([]udpio.Message{{Body: b}})
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Second)
		got, _ := s.snapshot()
		if len(got) != len(want) {
			t.Fatalf("%d datagrams came back, want %d; drops %v", len(got), len(want), w.session.Dropped())
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("datagram %d of %d bytes differs", i, len(want[i]))
			}
		}
	})
}

func TestAnEndedFlowIsFreedOnBothSidesAndRaisesNoGhost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mustAttach(netsim.Config{})
		var s sink
		f := w.open(&s)
		send(f, "hello")
		synctest.Wait()
		f.End(EndNormal)
		synctest.Wait()
		if opened, ended := w.exit.counts(); opened != 1 || ended != 1 {
			t.Fatalf("the exit opened %d and ended %d flows, want 1 and 1", opened, ended)
		}
		far := w.host.Sessions()[0]
		if n, m := w.session.Flows(), far.Flows(); n != 0 || m != 0 {
			t.Errorf("%d and %d flows are left", n, m)
		}
		// A datagram that comes late, as it may after a switch of carriers.
		w.session.q.Push(&queue.Flow{ID: f.ID()}, message([]byte("late")), w.session.now())
		synctest.Wait()
		if opened, _ := w.exit.counts(); opened != 1 {
			t.Errorf("the late datagram raised a ghost")
		}
		if n := far.Dropped()[stats.Ended]; n != 1 {
			t.Errorf("%d drops of ended flows counted, want 1", n)
		}
	})
}

func TestAForgottenFlowIsMadeAnewByItsNextDatagram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mustAttach(netsim.Config{})
		var s sink
		f := w.open(&s)
		send(f, "one")
		synctest.Wait()
		w.exit.flows[f.ID()].Forget()
		send(f, "two")
		synctest.Wait()
		got, codes := s.snapshot()
		if opened, ended := w.exit.counts(); opened != 2 || ended != 0 || len(got) != 2 || len(codes) != 0 {
			t.Errorf("opened %d, ended %d, %d datagrams back, ends %v", opened, ended, len(got), codes)
		}
	})
}

func TestARefusedFlowEndsWithTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.exit.refuse = true
		w.mustAttach(netsim.Config{})
		var s sink
		send(w.open(&s), "hello", "hello", "hello")
		synctest.Wait()
		if _, codes := s.snapshot(); len(codes) != 1 || codes[0] != EndLimit {
			t.Errorf("ended with %v, want once with %v", codes, EndLimit)
		}
	})
}

func TestADatagramForAFlowThatIsGoneIsAnsweredByItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mustAttach(netsim.Config{})
		var s sink
		f := w.open(&s)
		send(f, "hello")
		synctest.Wait()
		f.Forget() // the client lost it without a word
		time.Sleep(time.Second)
		echo := w.exit.flows[f.ID()]
		for range 100 {
			send(echo, "reply")
			synctest.Wait()
		}
		if _, ended := w.exit.counts(); ended != 1 {
			t.Errorf("the server's flow ended %d times, want once", ended)
		}
		if n := w.session.Dropped()[stats.Unknown]; n != 1 {
			t.Errorf("%d unknown datagrams, want 1: the flow ended at the first", n)
		}
	})
}

func TestACarrierThatHasEndedIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		near, _ := w.mustAttach(netsim.Config{})
		f := w.open(&sink{})
		send(f, "x")
		f.End(0)
		time.Sleep(time.Second)
		known := func() bool {
			w.session.mu.Lock()
			defer w.session.mu.Unlock()
			return w.session.ends.on == near
		}
		if !known() {
			t.Fatal("it has not sent the end")
		}
		near.c.Close(carrier.CodeShutdown, "")
		<-near.Done()
		if known() {
			t.Error("the list of ends holds it")
		}
	})
}

func TestEndsAreSentAgainOnTheNextCarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		near, _ := w.mustAttach(netsim.Config{Delay: 50 * time.Millisecond})
		var flows []*Flow
		for range 500 {
			f := w.open(&sink{})
			send(f, "hello")
			flows = append(flows, f)
		}
		time.Sleep(time.Second)
		far := w.host.Sessions()[0]
		if far.Flows() != 500 {
			t.Fatalf("%d flows at the far end, want 500", far.Flows())
		}
		second := make(chan struct{})
		go func() { // replaces the first carrier, in the same session
			defer close(second)
			w.mustAttach(netsim.Config{Delay: 50 * time.Millisecond})
		}()
		for _, f := range flows {
			f.End(EndNormal)
		}
		<-second
		<-near.Done()
		time.Sleep(time.Second)
		if n := far.Flows(); n != 0 {
			t.Errorf("%d flows are left at the far end", n)
		}
		w.session.mu.Lock()
		defer w.session.mu.Unlock()
		if n := len(w.session.ends.pending); n != 0 {
			t.Errorf("%d ends were never acknowledged", n)
		}
	})
}

func TestTheSessionOutlivesItsCarriers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		near, _ := w.mustAttach(netsim.Config{})
		var s sink
		f := w.open(&s)
		send(f, "one")
		synctest.Wait()
		near.c.Close(carrier.CodeNone, "cut")
		<-near.Done()
		send(f, "lost")
		time.Sleep(queueAge + time.Second)
		w.mustAttach(netsim.Config{})
		send(f, "two")
		synctest.Wait()
		got, codes := s.snapshot()
		if len(got) != 2 || string(got[0]) != "one" || string(got[1]) != "two" || len(codes) != 0 {
			t.Errorf("got %q, ends %v", got, codes)
		}
	})
}

func TestARestartedServerGetsANewSessionAndTheSameFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		near, _ := w.mustAttach(netsim.Config{})
		first := w.session.current().id
		var s sink
		f := w.open(&s)
		send(f, "one")
		synctest.Wait()
		w.host.Close(carrier.CodeShutdown, "restart")
		<-near.Done()
		var closed *carrier.CloseError
		if !errors.As(near.Err(), &closed) || closed.Code != carrier.CodeShutdown || closed.Reason != "restart" {
			t.Errorf("the carrier ended with %v", near.Err())
		}
		w.host = w.newHost()
		defer w.close()
		near, _ = w.mustAttach(netsim.Config{})
		if near.Resumed() || w.session.current().id == first {
			t.Error("the new server process resumed a session it cannot know")
		}
		send(f, "two")
		synctest.Wait()
		if got, codes := s.snapshot(); len(got) != 2 || len(codes) != 0 {
			t.Errorf("got %q, ends %v", got, codes)
		}
	})
}

// A new server process numbers its flows from the start again.
func TestRestartedServersFlowsReachNewHandlers(t *testing.T) {
	for name, ended := range map[string]bool{"open before": false, "ended before": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				clientExit := &echoExit{}
				w.session = NewSession(SessionConfig{Exit: clientExit})
				w.mustAttach(netsim.Config{})
				var before, after sink
				f, err := w.host.Sessions()[0].OpenFlow(&before)
				if err != nil {
					t.Fatal(err)
				}
				send(f, "before")
				synctest.Wait()
				if ended {
					f.End(EndNormal)
					synctest.Wait()
				}
				w.host.Close(carrier.CodeShutdown, "restart")
				w.host = w.newHost()
				defer w.close()
				w.mustAttach(netsim.Config{})
				g, err := w.host.Sessions()[0].OpenFlow(&after)
				if err != nil {
					t.Fatal(err)
				}
				if g.ID() != f.ID() {
					t.Fatalf("the flows are %d and %d; want the same number again", f.ID(), g.ID())
				}
				send(g, "after")
				synctest.Wait()
				if opened, ended := clientExit.counts(); opened != 2 || ended != 1 {
					t.Errorf("the client's exit opened %d flows and ended %d, want 2 and 1", opened, ended)
				}
				got, codes := after.snapshot()
				if diff := cmp.Diff([][]byte{[]byte("after")}, got); diff != "" || len(codes) != 0 {
					t.Errorf("ends %v; what came back (-want +got):\n%s", codes, diff)
				}
			})
		})
	}
}

// What is left of the old server process must not touch the new one's flows.
func TestStaleCarrierTouchesNoNewFlow(t *testing.T) {
	clientExit := &echoExit{}
	s := NewSession(SessionConfig{Exit: clientExit})
	defer s.Close(carrier.CodeShutdown, "done")
	old, late := s.current(), [][]byte{[]byte("late")}
	s.deliver(old, 3, late)
	stale := clientExit.flows[3]
	s.renew(old)
	s.deliver(s.current(), 3, [][]byte{[]byte("new")})
	s.deliver(old, 3, late)
	s.deliver(old, 5, late)
	s.peerEnded(old, 3, EndNormal)
	stale.End(EndNormal)
	stale.Forget()
	if opened, ended := clientExit.counts(); opened != 2 || ended != 1 || s.Flows() != 1 {
		t.Errorf("opened %d, ended %d, open %d; want 2, 1, 1", opened, ended, s.Flows())
	}
	if got := s.Dropped()[stats.Ended]; got != 2 {
		t.Errorf("%d datagrams of the old process were dropped, want 2", got)
	}
	if n := len(s.ends.pending); n != 0 {
		t.Errorf("%d ends are to be sent, want none", n)
	}
}

func TestTwoRacingDialsMakeOneSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { _, _, _, _ = w.attach(w.session, alice, netsim.Config{Delay: 10 * time.Millisecond}) })
		}
		wg.Wait()
		time.Sleep(time.Second)
		if n := len(w.host.Sessions()); n != 1 {
			t.Errorf("%d sessions, want 1", n)
		}
		if n := len(w.session.Paths()); n != 1 {
			t.Errorf("%d carriers of one kind are attached, want 1", n)
		}
	})
}

func TestWhoIsNotLetInIsToldWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mustAttach(netsim.Config{})

		foreign := NewSession(SessionConfig{Transports: testTransports})
		defer foreign.Close(carrier.CodeNone, "")
		foreign.inc.id = w.session.inc.id // alice's session, with a secret of its own

		mallory := NewSession(SessionConfig{Transports: testTransports})
		defer mallory.Close(carrier.CodeNone, "")
		mallory.inc = &incarnation{id: w.session.inc.id, secret: w.session.inc.secret}

		for _, c := range []struct {
			name    string
			session *Session
			cred    Credentials
			code    carrier.ErrorCode
		}{
			{"wrong token", NewSession(SessionConfig{Transports: testTransports}), Credentials{"alice", "wrong"}, carrier.CodeAuth},
			{"wrong secret", foreign, alice, carrier.CodeSession},
		} {
			_, _, errNear, errFar := w.attach(c.session, c.cred, netsim.Config{})
			for side, err := range map[string]error{"client": errNear, "server": errFar} {
				var closed *carrier.CloseError
				if !errors.As(err, &closed) || closed.Code != c.code {
					t.Errorf("%s: the %s got %v, want code %d", c.name, side, err, c.code)
				}
			}
		}
		// Another user's session id is simply unknown: a session of his own.
		if _, _, err, _ := w.attach(mallory, Credentials{"mallory", "right"}, netsim.Config{}); err != nil {
			t.Errorf("another user with the same id: %v", err)
		}
		if n := len(w.host.Sessions()); n != 2 {
			t.Errorf("%d sessions, want alice's and mallory's", n)
		}
		if n := len(w.session.Paths()); n != 1 {
			t.Errorf("alice lost her carrier")
		}
	})
}

func TestStreamsCarryBytesAndRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mustAttach(netsim.Config{Delay: 5 * time.Millisecond})
		ctx := context.Background()
		st, bound, err := w.session.OpenStream(ctx, []byte("target"))
		if err != nil || string(bound) != "bound" {
			t.Fatalf("bound %q, error %v", bound, err)
		}
		sent := make([]byte, 3<<20)
		rand.Read(sent)
		go func() {
			_, _ = st.Write(sent)
			_ = st.CloseWrite()
		}()
		got, err := io.ReadAll(st)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d of %d bytes came back, %v", len(got), len(sent), err)
		}
		st.Reset(carrier.CodeNone)

		_, _, err = w.session.OpenStream(ctx, []byte("refused"))
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Code != 5 {
			t.Errorf("got %v, want reply 5", err)
		}
		time.Sleep(time.Minute)
		if n := w.host.Sessions()[0].streams.Load(); n != 0 {
			t.Errorf("%d streams are left at the far end", n)
		}
	})
}

func TestAStreamWaitsABoundedTimeForACarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		began := time.Now()
		_, _, err := w.session.OpenStream(context.Background(), []byte("target"))
		if !errors.Is(err, ErrNotAttached) || time.Since(began) != attachWait {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		result := make(chan error)
		go func() {
			st, _, err := w.session.OpenStream(context.Background(), []byte("target"))
			if err == nil {
				st.Reset(carrier.CodeNone)
			}
			result <- err
		}()
		time.Sleep(attachWait / 2)
		w.mustAttach(netsim.Config{})
		if err := <-result; err != nil {
			t.Errorf("a carrier came in time, yet: %v", err)
		}
	})
}

func TestASilentCarrierIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		near, far := w.mustAttach(netsim.Config{Delay: 30 * time.Millisecond})
		time.Sleep(10 * time.Minute)
		if near.Err() != nil || far.Err() != nil {
			t.Fatalf("an idle carrier ended: %v, %v", near.Err(), far.Err())
		}
		if rtt := near.RTT(); rtt < 60*time.Millisecond || rtt > 65*time.Millisecond {
			t.Errorf("RTT %v over a path of 60 ms", rtt)
		}
		near.c.(*netsim.End).Mute(true)
		far.c.(*netsim.End).Mute(true) // and the path swallows everything
		began := time.Now()
		<-near.Done()
		if d := time.Since(began); d > 30*time.Second+idleProbe+time.Second {
			t.Errorf("it took %v to notice", d)
		}
	})
}

func TestClosingASessionEndsItsFlowsAndStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.mustAttach(netsim.Config{})
		var s sink
		f := w.open(&s)
		send(f, "hello")
		st, _, err := w.session.OpenStream(context.Background(), []byte("target"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.host.Close(carrier.CodeShutdown, "bye")
		if _, ended := w.exit.counts(); ended != 1 {
			t.Errorf("%d of the exit's flows ended, want 1", ended)
		}
		_, err = st.Read(make([]byte, 1))
		if reset := (*carrier.ResetError)(nil); !errors.As(err, &reset) {
			t.Errorf("the stream ended with %v, want a reset", err)
		}
		st.Reset(carrier.CodeNone)
		w.session.Close(carrier.CodeShutdown, "bye")
		if _, codes := s.snapshot(); len(codes) != 1 || codes[0] != EndShutdown {
			t.Errorf("the client's flow ended with %v", codes)
		}
		if _, err := w.session.OpenFlow(&s); !errors.Is(err, ErrSessionClosed) {
			t.Errorf("opening a flow: %v", err)
		}
	})
}

func TestLossyPathsLoseOnlyWhatTheyLose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		near, far := netsim.New(netsim.Config{MaxBundle: 1404, Lossy: true, Loss: 0.1, Seed: 7, Delay: 25 * time.Millisecond}, netsim.Config{Delay: 25 * time.Millisecond})
		go func() { _, _ = w.host.Attach(context.Background(), far) }()
		if _, err := w.session.Attach(context.Background(), near, alice); err != nil {
			t.Fatal(err)
		}
		var s sink
		f := w.open(&s)
		const n = 3000
		for i := range n {
			send(f, fmt.Sprintf("%0160d", i))
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Second)
		got, _ := s.snapshot()
		// Three standard deviations of a binomial with p = 0.1 around 300.
		if lost := n - len(got); lost < 250 || lost > 350 {
			t.Errorf("%d of %d lost on a path that loses a tenth", lost, n)
		}
		for i := 1; i < len(got); i++ {
			if string(got[i]) <= string(got[i-1]) {
				t.Fatalf("datagram %d was reordered or repeated", i)
			}
		}
	})
}

// message returns a batch of one datagram.
func message(body []byte) []udpio.Message { return []udpio.Message{{Body: body}} }

// Bounds of the rooms below, as a session shows them.
const (
	queueAge      = 120 * time.Millisecond
	detachedBytes = 64 << 10
	idleProbe     = 10 * time.Second
)

// serving returns the carriers that serve datagrams and new streams; nil is none.
func (s *Session) serving() (datagrams, streams *Path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.datagramPath, s.streamPath
}
