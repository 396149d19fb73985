package egress

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"wmproxy/internal/share"
	"wmproxy/internal/stats"
	"wmproxy/internal/user"
	"wmproxy/socks"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

// opener opens flows of users at e.
func opener(e *Exits) func(user string) (*flow, tunnel.EndCode) {
	return func(user string) (*flow, tunnel.EndCode) { return exitOf(e, user).openFlow(newFakeLink(1)) }
}

func TestFlowLimitRefusesOnlyThatUser(t *testing.T) {
	e := newExits(t, Config{MaxUserFlows: 2})
	open := opener(e)
	first, _ := open("ann")
	open("ann")
	if f, code := open("ann"); f != nil || code != tunnel.EndLimit {
		t.Errorf("a third of one user: %v", code)
	}
	if f, code := open("bob"); f == nil {
		t.Errorf("the first of another: %v", code)
	}
	first.Ended(tunnel.EndNormal)
	eventually(t, "there is room", func() bool { f, _ := open("ann"); return f != nil })
	if h, code := exitOf(e, "ann").OpenFlow(nil); h != nil || code != tunnel.EndLimit {
		t.Errorf("a refused handler is %v, not nil", h)
	}
}

func TestFlowsAndStreamsShareTheDescriptors(t *testing.T) {
	at := target(t, "127.0.0.1")
	e := newExits(t, Config{Room: share.New(2, 2)})
	ann := exitOf(e, "ann")
	a, b := ask(), ask()
	done := serve(t, t.Context(), e, to(at, ""), a)
	receive(t, a.bound)
	if f, code := ann.openFlow(newFakeLink(1)); f == nil {
		t.Fatalf("the second: %v", code)
	}
	if f, code := ann.openFlow(newFakeLink(2)); f != nil || code != tunnel.EndLimit {
		t.Errorf("a third: %v", code)
	}
	serve(t, t.Context(), e, to(at, ""), b)
	if code := receive(t, b.refused); code != socks.ReplyGeneralFailure {
		t.Errorf("a third, of streams: refused with %d", code)
	}
	a.client.Reset(carrier.CodeNone)
	receive(t, done)
	if f, _ := ann.openFlow(newFakeLink(3)); f == nil {
		t.Error("no room after an end")
	}
}

func TestTakenSocketIsReplacedOnNextDatagram(t *testing.T) {
	r := newRemote(t, "127.0.0.1")
	room := share.New(4, 4)
	e := newExits(t, Config{Room: room})
	open := opener(e)
	var anns []*flow
	for range 4 {
		f, _ := open("ann")
		anns = append(anns, f)
	}
	for range 5 {
		room.Tick()
	}
	for _, f := range anns[1:] { // the first is idle
		send(f, to(r.at, "in use"))
		r.get(t)
	}
	bob, code := open("bob")
	if bob == nil {
		t.Fatalf("bob's first: %v", code)
	}
	send(bob, to(r.at, "bob"))
	r.get(t)
	for i, f := range anns {
		if has := f.sock.Load() != nil; has != (i > 0) {
			t.Errorf("flow %d of ann's has a socket: %v", i, has)
		}
	}
	send(anns[0], to(r.at, "lost"))
	if n := drops(anns[0], stats.NoRoom); n != 1 {
		t.Errorf("%d drops for want of room, want 1", n)
	}
	if n := openFlows(e); n != 5 {
		t.Errorf("%d flows are open, want 5: the one without a socket is", n)
	}
	bob.Ended(tunnel.EndNormal)
	eventually(t, "bob's flow is gone", func() bool { return openFlows(e) == 4 })
	send(anns[0], to(r.at, "too soon")) // it asks once a second
	room.Tick()
	send(anns[0], to(r.at, "back"))
	if got, _ := r.get(t); got != "back" {
		t.Errorf("the target got %q", got)
	}
}

func TestFlowKeepsSocketFromUserWithAsMany(t *testing.T) {
	e := newExits(t, Config{Room: share.New(4, 4)})
	open := opener(e)
	for range 2 {
		open("ann")
		open("bob")
	}
	for _, user := range []string{"ann", "bob"} {
		if f, code := open(user); f != nil || code != tunnel.EndLimit {
			t.Errorf("a third of %s's: %v", user, code)
		}
	}
}

func TestStreamIsResetForUserWithFewer(t *testing.T) {
	at := target(t, "127.0.0.1")
	room := share.New(3, 3)
	e := newExits(t, Config{Room: room})
	var anns []*asked
	var done []<-chan struct{}
	for range 3 {
		a := ask()
		done = append(done, serve(t, t.Context(), e, to(at, ""), a))
		receive(t, a.bound)
		anns = append(anns, a)
		room.Tick()
	}
	for range 5 {
		room.Tick()
	}
	echo := func(a *asked) {
		t.Helper()
		b := make([]byte, 1)
		if _, err := a.client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := a.client.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	echo(anns[0])
	echo(anns[2])
	b := ask()
	serveFor(t, t.Context(), exitOf(e, "bob"), to(at, ""), b)
	receive(t, b.bound)
	receive(t, done[1])
	var reset *carrier.ResetError
	if _, err := anns[1].client.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Code != carrier.CodeLimit {
		t.Errorf("the idle stream ended with %v", err)
	}
	echo(anns[0])
	echo(anns[2])
}

// Flows of a session that nobody uses give way first.
func TestSpareFlowsEndFirst(t *testing.T) {
	var e *Exits
	var spare []*flow
	var asked []string
	room := share.New(3, 3)
	room.Spare = func(user string, may func(string) bool) bool {
		asked = append(asked, fmt.Sprint(user, " ", may("ann")))
		if len(spare) == 0 || !may("ann") {
			return false
		}
		spare[0].Ended(tunnel.EndLimit)
		spare = spare[1:]
		return true
	}
	e = newExits(t, Config{Room: room})
	open := opener(e)
	for range 2 {
		f, _ := open("ann")
		spare = append(spare, f)
	}
	open("bob")
	if f, code := open("bob"); f == nil {
		t.Errorf("a fourth in all, though room can be made: %v", code)
	}
	if f, code := open("bob"); f != nil || code != tunnel.EndLimit {
		t.Errorf("a third of bob's, who has more than ann: %v", code)
	}
	if fmt.Sprint(asked) != "[bob true bob false]" {
		t.Errorf("asked for room: %q", asked)
	}
	eventually(t, "ann has one flow, bob two", func() bool { return openFlows(e) == 3 })
}

func TestFloodBeyondLimitRarelyCallsMakeRoom(t *testing.T) {
	asked := 0
	room := share.New(1, 1)
	room.Spare = func(string, func(string) bool) bool { asked++; return false }
	open := opener(newExits(t, Config{Room: room}))
	open("ann")
	began := time.Now()
	for range 10_000 {
		if f, code := open("ann"); f != nil || code != tunnel.EndLimit {
			t.Fatalf("beyond the limit: %v", code)
		}
	}
	if most := 1 + int(time.Since(began)/(100*time.Millisecond)); asked == 0 || asked > most {
		t.Errorf("asked %d times, want at most %d", asked, most)
	}
}

func TestIdleExitOfARemovedUserIsForgotten(t *testing.T) {
	e := newExits(t, Config{})
	for range 100 {
		e.For(user.New("rotated", "", new(stats.Total)))
	}
	e.For(user.New("other", "", new(stats.Total)))
	if n := len(e.users); n != 2 {
		t.Errorf("%d exits for two users", n)
	}
}
