package client

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/config"
	"wmproxy/internal/link"
	"wmproxy/internal/netsim"
	"wmproxy/internal/stats"
	"wmproxy/internal/user"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/quic"
	"wmproxy/tunnel/tcp"
)

// awayServer is a server in memory that can be away, or refuse everyone.
type awayServer struct {
	t *testing.T

	mu     sync.Mutex
	host   *tunnel.Registry // nil while it is away
	refuse bool
	dials  int
	ends   map[carrier.Kind]*netsim.End // the newest of each kind
}

func newAwayServer(t *testing.T) *awayServer {
	return &awayServer{t: t, ends: make(map[carrier.Kind]*netsim.End)}
}

func (s *awayServer) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := user.New("", "", new(stats.Total))
	s.host = tunnel.NewRegistry(tunnel.RegistryConfig{Authenticate: func(tunnel.Credentials) *user.User {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.refuse {
			return nil
		}
		return u
	}})
}

// refuses sets whether s refuses everyone who attaches from now on.
func (s *awayServer) refuses(refuse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

// dialed returns how often s was dialed since the last call.
func (s *awayServer) dialed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.dials
	s.dials = 0
	return n
}

// kill ends the server. Over TCP the client notices, over QUIC it hears no more.
func (s *awayServer) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for kind, end := range s.ends {
		if kind == carrier.KindQUIC {
			end.Mute(true)
		} else {
			end.Break(io.EOF)
		}
	}
	s.host.Close(carrier.CodeShutdown, "")
	s.host = nil
}

func (s *awayServer) connect(ctx context.Context, kind carrier.Kind) (carrier.Pending, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials++
	if s.host == nil {
		return nil, syscall.ECONNREFUSED
	}
	cfg := netsim.Config{Traits: tcp.Traits}
	if kind == carrier.KindQUIC {
		cfg.Traits = quic.Traits
	}
	near, far := netsim.New(cfg, cfg)
	s.ends[kind] = far
	registry := s.host
	go func() { _, _ = registry.Attach(ctx, far) }()
	return near, nil
}

// keeping runs a client of s for the kinds until the test ends.
func (s *awayServer) keeping(kinds []carrier.Kind, timers config.Timers) *upstream {
	c, _ := keepAll(s.t, kinds, timers, s)
	return c.upstreams[0]
}

// keepAll runs a client of the servers for the kinds until the test ends, but for its entrance. The
// function returned returns the reason for which the client ended, nil before.
func keepAll(t *testing.T, kinds []carrier.Kind, timers config.Timers, servers ...*awayServer) (*Client, func() error) {
	links := make([]link.Link, len(servers))
	for i := range links {
		links[i] = testLink
		links[i].Port += uint16(i)
	}
	c := New(Config{Client: config.Client{Links: links, Timers: timers}, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancelCause(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { c.steerAll(ctx) })
	for i, u := range c.upstreams {
		u.connect = servers[i].connect
		for _, kind := range kinds {
			wg.Go(func() { u.keep(ctx, kind, func() { c.refusedBy(u, cancel) }) })
		}
	}
	t.Cleanup(func() {
		cancel(nil)
		wg.Wait()
		for i, u := range c.upstreams {
			u.session.Close(carrier.CodeShutdown, "")
			if host := servers[i].host; host != nil {
				host.Close(carrier.CodeShutdown, "")
			}
		}
	})
	return c, func() error { return context.Cause(ctx) }
}

// attachedAfter returns how long it takes until a good carrier of the kind is there.
func attachedAfter(t *testing.T, u *upstream, kind carrier.Kind) time.Duration {
	t.Helper()
	began := time.Now()
	for !u.session.Healthy(kind) {
		if time.Since(began) > time.Minute {
			t.Fatalf("no carrier of kind %v within a minute", kind)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

func TestBackoffIsForgottenOnSuccess(t *testing.T) {
	for _, kind := range []carrier.Kind{carrier.KindYamux, carrier.KindQUIC} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newAwayServer(t)
				u := s.keeping([]carrier.Kind{kind}, config.Timers{Suspect: time.Second, SuspectIdle: time.Second})
				time.Sleep(90 * time.Second)
				s.start()
				attachedAfter(t, u, kind)
				time.Sleep(8 * time.Second)
				s.kill()
				time.Sleep(4 * time.Second)
				s.start()
				// The waits of four seconds add up to the next one, which is of 4 s give or take a half.
				if took := attachedAfter(t, u, kind); took > 6*time.Second {
					t.Errorf("attached %v after the server was back, want at most 6s", took)
				}
			})
		})
	}
}

func TestFirstCarrierBringsTheOtherKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAwayServer(t)
		u := s.keeping([]carrier.Kind{carrier.KindQUIC, carrier.KindYamux}, config.Timers{})
		time.Sleep(10 * time.Minute)
		s.start()
		for !u.session.Healthy(0) {
			time.Sleep(time.Millisecond)
		}
		for _, kind := range []carrier.Kind{carrier.KindQUIC, carrier.KindYamux} {
			if took := attachedAfter(t, u, kind); took > 100*time.Millisecond {
				t.Errorf("%v attached %v after the first", kind, took)
			}
		}
	})
}

func TestCarrierThatEndsAtOnceIsNotDialedWithoutPause(t *testing.T) {
	for name, kinds := range map[string][]carrier.Kind{
		"one kind": {carrier.KindYamux},
		// Neither may bring the other back.
		"both kinds": {carrier.KindQUIC, carrier.KindYamux},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newAwayServer(t)
				s.start()
				u := s.keeping(kinds, config.Timers{})
				attaches := 0
				for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(time.Millisecond) {
					for _, kind := range kinds {
						s.mu.Lock()
						end := s.ends[kind]
						s.mu.Unlock()
						if end != nil && u.session.Healthy(kind) {
							attaches++
							end.Break(io.EOF)
						}
					}
				}
				if most := 12 * len(kinds); attaches > most {
					t.Errorf("%d attaches in a minute, want at most %d", attaches, most)
				}
			})
		})
	}
}

// Every client of a server sees its end at once, and not all may dial together.
func TestEndedCarrierIsDialedAfterAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAwayServer(t)
		s.start()
		u := s.keeping([]carrier.Kind{carrier.KindYamux, carrier.KindQUIC}, config.Timers{})
		attachedAfter(t, u, carrier.KindYamux)
		attachedAfter(t, u, carrier.KindQUIC)
		time.Sleep(time.Minute)
		s.mu.Lock()
		s.ends[carrier.KindYamux].Break(io.EOF)
		s.mu.Unlock()
		synctest.Wait()
		if took := attachedAfter(t, u, carrier.KindYamux); took < firstBackoff/2 || took > 2*firstBackoff {
			t.Errorf("attached again after %v, want %v give or take a half", took, firstBackoff)
		}
	})
}
