package tunnel

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/netsim"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/quic"
)

// enter attaches a new session of the user and returns it and its carrier.
func (p *twoPaths) enter(user string) (*Session, *Path, error) {
	s := NewSession(SessionConfig{})
	w := &world{t: p.t, host: p.host, session: s}
	a, _, near, far := w.attach(s, Credentials{User: user, Token: "right"}, lossyPath)
	return s, a, errors.Join(near, far)
}

func TestConnectionIsRefusedBeforeWelcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Hour)
		defer p.close()
		p.host.cfg.Admit = func(context.Context, *Connection) (func(), error) {
			return nil, &carrier.CloseError{Code: carrier.CodeLimit, Reason: "there is no room"}
		}
		s, _, err := p.enter("alice")
		var refusal *carrier.CloseError
		if !errors.As(err, &refusal) || refusal.Code != carrier.CodeLimit || refusal.Reason != "there is no room" {
			t.Errorf("refused with %v", err)
		}
		synctest.Wait()
		if n := len(p.host.Sessions()); n != 0 {
			t.Errorf("%d sessions are held for a client that was refused", n)
		}
		p.gone(s)
	})
}

func TestConnectionIsClosedWithASentence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Hour)
		defer p.close()
		var conn *Connection
		left := 0
		p.host.cfg.Admit = func(_ context.Context, c *Connection) (func(), error) {
			conn = c
			return func() { left++ }, nil
		}
		s, a, err := p.enter("alice")
		if err != nil {
			t.Fatal(err)
		}
		if conn.User().Name != "alice" || conn.Traits() != quic.Traits || left != 0 {
			t.Errorf("user %q, %v, left %d times", conn.User().Name, conn.Traits().Kind, left)
		}
		conn.Close(carrier.CodeLimit, "others need the room")
		conn.Close(carrier.CodeLimit, "again")
		<-a.Done()
		var told *carrier.CloseError
		if !errors.As(a.Err(), &told) || told.Code != carrier.CodeLimit || told.Reason != "others need the room" {
			t.Errorf("closed with %v", a.Err())
		}
		synctest.Wait()
		if left != 1 {
			t.Errorf("it has left %d times, want once", left)
		}
		if !p.has(s) {
			t.Error("the session is not held")
		}
		time.Sleep(time.Hour)
		p.gone(s)
	})
}

func TestConnectionIsUsedWithItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Hour)
		defer p.close()
		var conns []*Connection
		p.host.cfg.Admit = func(_ context.Context, c *Connection) (func(), error) {
			conns = append(conns, c)
			return func() {}, nil
		}
		p.join(lossyPath)
		v := p.talk()
		v.run(time.Second)
		time.Sleep(time.Minute) // probes go on
		if idle := time.Since(conns[0].LastUsed()); idle < 59*time.Second || idle > 62*time.Second {
			t.Errorf("idle for %v, want a minute", idle)
		}
		p.join(lossyPath) // beside it
		v.run(time.Second)
		for i, c := range conns {
			if idle := time.Since(c.LastUsed()); idle > time.Second {
				t.Errorf("connection %d of a session in use has been idle for %v", i, idle)
			}
		}
		v.check(t)
		p.gone()
	})
}

func TestSessionGoesFromWhoHasMostToWhoHasLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Hour)
		defer p.close()
		p.host.most = 4
		var all, alices []*Session
		for range 4 {
			s, _, err := p.enter("alice")
			if err != nil {
				t.Fatal(err)
			}
			alices = append(alices, s)
			time.Sleep(time.Second)
		}
		send((&world{t: t, host: p.host, session: alices[0]}).open(&sink{}), "in use")
		time.Sleep(time.Second)
		if s, _, err := p.enter("alice"); err == nil {
			t.Error("alice has a fifth of four")
		} else {
			all = append(all, s)
		}
		for i, want := range []bool{true, true, false} { // alice has 3 and 1, 2 and 2 then
			s, _, err := p.enter("bob")
			if (err == nil) != want {
				t.Errorf("bob's session %d: %v", i+1, err)
			}
			all = append(all, s)
		}
		synctest.Wait()
		for i, want := range []bool{true, false, false, true} {
			if has := p.has(alices[i]); has != want {
				t.Errorf("alice has session %d: %v, want %v", i, has, want)
			}
		}
		p.gone(append(all, alices...)...)
	})
}

func TestRefusedConnectionLeavesTheSessionToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Hour)
		defer p.close()
		entered, refuse := make(chan struct{}), make(chan struct{})
		asked := 0
		p.host.cfg.Admit = func(context.Context, *Connection) (func(), error) {
			if asked++; asked > 1 {
				return func() {}, nil
			}
			close(entered)
			<-refuse
			return nil, &carrier.CloseError{Code: carrier.CodeLimit, Reason: "there is no room"}
		}
		s := NewSession(SessionConfig{})
		w := &world{t: t, host: p.host, session: s}
		first := make(chan error)
		go func() {
			_, _, near, _ := w.attach(s, alice, lossyPath)
			first <- near
		}()
		<-entered
		a, _, near, far := w.attach(s, alice, lossyPath)
		if err := errors.Join(near, far); err != nil {
			t.Fatal(err)
		}
		close(refuse)
		if <-first == nil {
			t.Fatal("the first is not refused")
		}
		a.c.(*netsim.End).Break(errors.New("cut"))
		<-a.Done()
		synctest.Wait()
		if !p.has(s) {
			t.Error("the session is not held for a client that was cut off")
		}
		time.Sleep(time.Hour)
		p.gone(s)
	})
}
