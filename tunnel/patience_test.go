package tunnel

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"wmproxy/internal/user"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
	"wmproxy/tunnel/health"
	"wmproxy/tunnel/quic"
)

// cuttable is a network in memory that can be cut.
type cuttable struct {
	simnet.PerfectRouter
	cut atomic.Bool
}

func (c *cuttable) SendPacket(p simnet.Packet) error {
	if c.cut.Load() {
		return nil
	}
	return c.PerfectRouter.SendPacket(p)
}

func TestOverQUICAStreamOutlivesWhatDeadAllowsAndNoMore(t *testing.T) {
	clientTLS, serverTLS := carriertest.TLS()
	valid := time.Now()
	clientTLS = clientTLS.Clone()
	clientTLS.Time = func() time.Time { return valid }
	for _, c := range []struct {
		name     string
		dead     time.Duration // 0 is 30 s
		cut      time.Duration
		outlives bool
	}{
		// QUIC tries again after twice as long each time, so it needs up to twice the cut.
		{"30 s, cut for 12", 0, 12 * time.Second, true},
		{"30 s, cut for 45", 0, 45 * time.Second, false},
		{"two minutes, cut for 45 s", 2 * time.Minute, 45 * time.Second, true},
		{"two minutes, cut for 160 s", 2 * time.Minute, 160 * time.Second, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var network cuttable
				at := &net.UDPAddr{IP: net.IPv4(1, 0, 0, 1), Port: 8090}
				ln, err := quic.Listen(simnet.NewSimConn(at, &network), serverTLS, quic.Config{Dead: c.dead})
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				p := &twoPaths{world: &world{t: t, exit: &echoExit{}}}
				p.host = NewRegistry(RegistryConfig{
					Authenticate: anyone,
					Exit:         func(*user.User) Exit { return p.exit },
					Timers:       health.Timers{Dead: c.dead},
				})
				p.session = NewSession(SessionConfig{Transports: testTransports, Timers: health.Timers{Dead: c.dead}})
				defer p.close()
				ctx := context.Background()
				var dial sync.WaitGroup
				dial.Go(func() {
					pending, err := ln.Accept(ctx)
					if err == nil {
						_, err = p.host.Attach(ctx, pending)
					}
					if err != nil {
						t.Error(err)
					}
				})
				near := simnet.NewSimConn(&net.UDPAddr{IP: net.IPv4(1, 0, 0, 2), Port: 4000}, &network)
				pending, err := quic.Dial(ctx, near, at, clientTLS, c.dead)
				if err != nil {
					t.Fatal(err)
				}
				a, err := p.session.Attach(ctx, pending, alice)
				if err != nil {
					t.Fatal(err)
				}
				dial.Wait()
				st, _, err := p.session.OpenStream(ctx, []byte("target"))
				if err != nil {
					t.Fatal(err)
				}
				defer st.Reset(carrier.CodeNone)
				time.Sleep(10 * time.Second)
				network.cut.Store(true)
				began := time.Now()
				if _, err := st.Write([]byte("a")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(c.cut)
				network.cut.Store(false)
				_, err = io.ReadFull(st, make([]byte, 1))
				if (err == nil) != c.outlives {
					t.Errorf("the stream ended with %v after %v; outlives %v", err, time.Since(began), c.outlives)
				}
				if c.outlives != (a.Err() == nil) {
					t.Errorf("the carrier ended with %v; outlives %v", a.Err(), c.outlives)
				}
			})
		})
	}
}

// Each side judges by its own numbers: it does not take the other to end it.
func TestAClientGivesASilentCarrierUpByItself(t *testing.T) {
	for _, dead := range []time.Duration{10 * time.Second, 30 * time.Second, 2 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			p := newTwoPaths(t, time.Minute)
			p.host.cfg.Timers.Dead = carrier.MaxDead
			p.session = NewSession(SessionConfig{Transports: testTransports, Timers: health.Timers{Dead: dead}})
			defer p.close()
			near, far := p.join(lossyPath)
			v := p.talk()
			v.run(time.Second)
			a := p.session.Paths()[0]
			near.Mute(true)
			far.Mute(true)
			began := time.Now()
			<-a.Done()
			if d := time.Since(began); d < dead-time.Second || d > dead+time.Second {
				t.Errorf("after %v, want %v: %v", d, dead, a.Err())
			}
		})
	}
}
