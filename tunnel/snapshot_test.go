package tunnel

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/tunnel/carrier"
)

func TestASnapshotSaysWhatServesAndWhatPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		if st := p.session.Snapshot(); st.Attached || st.Datagrams.Carrier != 0 || st.Datagrams.Why != "nothing is attached" {
			t.Errorf("before anything is attached: %+v", st)
		}
		p.join(orderedPath)
		time.Sleep(time.Second)
		if st := p.session.Snapshot(); st.Datagrams != (Choice{Carrier: 1, Why: "quic is not attached"}) || st.Streams != (Choice{Carrier: 1, Why: "preferred"}) {
			t.Errorf("with yamux alone: datagrams %+v, streams %+v", st.Datagrams, st.Streams)
		}
		p.join(lossyPath)
		var s sink
		f := p.open(&s)
		for range 10 {
			send(f, "0123456789")
			time.Sleep(100 * time.Millisecond)
		}
		st, _, err := p.session.OpenStream(t.Context(), []byte("there"))
		if err != nil {
			t.Fatal(err)
		}
		defer st.Reset(carrier.CodeNone)
		time.Sleep(5 * time.Second)

		near, far := p.session.Snapshot(), p.host.Sessions()[0].Snapshot()
		for _, side := range []struct {
			name           string
			st             SessionStatus
			user           string
			dgrams, stream string
		}{
			{"client", near, "", "preferred", "preferred"},
			{"server", far, "alice", "the client asks for it", "the client asks for it"},
		} {
			st := side.st
			if st.ID != near.ID || len(st.ID) != 8 || st.User != side.user || !st.Attached || st.Flows != 1 || st.OpenStreams != 1 {
				t.Errorf("%s: %+v", side.name, st)
			}
			if st.Datagrams != (Choice{2, side.dgrams}) || st.Streams != (Choice{1, side.stream}) {
				t.Errorf("%s: datagrams %+v, streams %+v", side.name, st.Datagrams, st.Streams)
			}
			if len(st.Carriers) != 2 {
				t.Fatalf("%s: %d carriers", side.name, len(st.Carriers))
			}
			yamux, quic := st.Carriers[0], st.Carriers[1]
			if yamux.Number != 1 || yamux.Kind != carrier.KindYamux || yamux.Datagrams || !yamux.Streams || yamux.OpenStreams != 1 ||
				quic.Number != 2 || quic.Kind != carrier.KindQUIC || !quic.Datagrams || quic.Streams || quic.OpenStreams != 0 {
				t.Errorf("%s: %+v, %+v", side.name, yamux, quic)
			}
			if yamux.Age < 7*time.Second || yamux.Age > 8*time.Second || quic.Age < 6*time.Second || quic.Age > 7*time.Second {
				t.Errorf("%s: ages %v and %v", side.name, yamux.Age, quic.Age)
			}
			for _, c := range st.Carriers {
				if c.Health != HealthGood || c.Reason != "" {
					t.Errorf("%s: %v is %q: %q", side.name, c.Kind, c.Health, c.Reason)
				}
			}
			// Ten datagrams of ten bytes, and a few probes.
			if up := quic.BundlesUp; up < 10 || up > 60 || quic.BundleBytesUp < 10*11 || quic.BundleBytesUp > 60*1500 {
				t.Errorf("%s: %d bundles up, %d bytes", side.name, up, quic.BundleBytesUp)
			}
		}
		if a, b := near.Carriers[1], far.Carriers[1]; a.BundlesUp != b.BundlesDown || a.BundlesDown != b.BundlesUp ||
			a.BundleBytesUp != b.BundleBytesDown || a.BundleBytesDown != b.BundleBytesUp {
			t.Errorf("the two sides of a path that loses nothing disagree: %+v, %+v", a, b)
		}
		if c := near.Carriers[1]; c.RTT != 50*time.Millisecond || c.Loss == nil || *c.Loss != 0 {
			t.Errorf("the client's QUIC: RTT %v, loss %v", c.RTT, c.Loss)
		}
	})
}

func TestASnapshotSaysWhyACarrierIsSuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		p.join(orderedPath)
		near, far := p.join(lossyPath)
		v := p.talk()
		v.run(5 * time.Second)
		near.Mute(true)
		far.Mute(true)
		v.run(4 * time.Second)
		st := p.session.Snapshot()
		c := st.Carriers[1]
		if c.Health != HealthSuspect || len(c.Reason) < 10 || c.Datagrams {
			t.Errorf("the dead path: %+v", c)
		}
		if st.Datagrams.Carrier != 1 || st.Datagrams.Why != "quic "+c.Reason {
			t.Errorf("datagrams: %+v, the carrier says %q", st.Datagrams, c.Reason)
		}
	})
}

func TestSnapshotTellsSilenceAsItGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		near, far := p.join(lossyPath)
		time.Sleep(time.Minute)
		near.Lose(1)
		far.Lose(1)
		muted := time.Now()
		time.Sleep(15 * time.Second)
		for range 2 {
			time.Sleep(3 * time.Second)
			st := p.session.Snapshot()
			c := st.Carriers[0]
			// Before, it was pinged every ten seconds.
			if silent := time.Since(muted); c.Heard < silent || c.Heard > silent+idleProbe {
				t.Errorf("after %v of silence: heard %v ago", silent, c.Heard)
			}
			want := fmt.Sprintf("silent for %.1f s", c.Heard.Seconds())
			if c.Health != HealthSuspect || c.Reason != want || st.Streams.Why != "quic "+want && st.Datagrams.Why != want+", but nothing is better" {
				t.Errorf("%q, %q: %+v, %+v; want %q", c.Health, c.Reason, st.Datagrams, st.Streams, want)
			}
			if doubt := p.session.Problem(); doubt != "nothing has come since "+time.Now().Add(-c.Heard).Format(time.TimeOnly) {
				t.Errorf("the doubt is %q", doubt)
			}
		}
		near.Lose(0)
		far.Lose(0)
		time.Sleep(time.Second)
		if c := p.session.Snapshot().Carriers[0]; c.Health != HealthSuspect || !strings.HasPrefix(c.Reason, "was silent for ") {
			t.Errorf("it answers again: %q, %q", c.Health, c.Reason)
		}
		if doubt := p.session.Problem(); !strings.HasPrefix(doubt, "quic was silent for ") {
			t.Errorf("the doubt is %q", doubt)
		}
	})
}

func TestASnapshotSaysHowLongNothingHasBeenAttached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		near, _ := p.join(lossyPath)
		time.Sleep(time.Second)
		near.Break(errors.New("cut"))
		time.Sleep(10 * time.Second)
		for _, st := range []SessionStatus{p.session.Snapshot(), p.host.Sessions()[0].Snapshot()} {
			if st.Attached || len(st.Carriers) != 0 || st.Detached != 10*time.Second {
				t.Errorf("%+v", st)
			}
		}
	})
}
