package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/admit"
	"wmproxy/internal/link"
	"wmproxy/internal/netsim"
	"wmproxy/internal/udpio"
	"wmproxy/internal/user"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/tcp"
)

// memoryListener accepts connections in memory.
type memoryListener struct {
	pending chan carrier.Pending
	errs    chan error
}

func newMemoryListener() *memoryListener {
	return &memoryListener{pending: make(chan carrier.Pending), errs: make(chan error)}
}

func (l *memoryListener) Accept(ctx context.Context) (carrier.Pending, error) {
	select {
	case p := <-l.pending:
		return p, nil
	case err := <-l.errs:
		return nil, err
	case <-ctx.Done():
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Addr() net.Addr { return nil }

func (l *memoryListener) Close() error { return nil }

// dial returns the client's end of a new connection to l.
func (l *memoryListener) dial() carrier.Pending {
	cfg := netsim.Config{Traits: tcp.Traits}
	near, far := netsim.New(cfg, cfg)
	l.pending <- far
	return near
}

const aliceToken = "secret-of-alice"

// memoryServer is a server without sockets.
type memoryServer struct {
	*Server
	*memoryListener
	registry *tunnel.Registry
	log      *bytes.Buffer // to be read after the end or synctest.Wait
	failed   chan error    // the result of accept
}

// startInMemory starts a server whose user alice has the token below, until the test ends. It has so
// many places for half-open connections.
func startInMemory(t *testing.T, halfOpen int) *memoryServer {
	t.Helper()
	log := new(bytes.Buffer)
	s := &memoryServer{
		Server: &Server{
			cfg: Config{Log: slog.New(slog.NewTextHandler(log, nil))},
			tcp: admit.Gate{Total: halfOpen}, drain: make(chan struct{}, 1), drained: make(chan struct{}),
		},
		memoryListener: newMemoryListener(), log: log, failed: make(chan error, 1),
	}
	s.setTokens([]link.Token{{Name: "alice", Secret: aliceToken}})
	s.registry = tunnel.NewRegistry(tunnel.RegistryConfig{
		Authenticate: func(c tunnel.Credentials) *user.User { return s.users.Authenticate(c.User, []byte(c.Token)) },
		Exit:         func(*user.User) tunnel.Exit { return discard{} },
	})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.failed <- s.accept(ctx, s.memoryListener, s.registry, nil, &wg) })
	wg.Go(func() { s.awaitDrain(ctx, s.registry) })
	t.Cleanup(func() {
		s.registry.Close(carrier.CodeShutdown, "the test is done")
		s.tcp.Close()
		stop()
		wg.Wait()
	})
	return s
}

func attach(t *testing.T, s *memoryServer, token string) (*tunnel.Session, error) {
	session := tunnel.NewSession(tunnel.SessionConfig{})
	t.Cleanup(func() { session.Close(carrier.CodeShutdown, "") })
	_, err := session.Attach(t.Context(), s.dial(), tunnel.Credentials{User: "alice", Token: token})
	return session, err
}

func TestWrongTokenIsRefusedWithOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startInMemory(t, 4)
		_, err := attach(t, s, "not-the-secret")
		var refusal *carrier.CloseError
		if !errors.As(err, &refusal) || refusal.Code != carrier.CodeAuth {
			t.Errorf("the client gets %v, want code %d", err, carrier.CodeAuth)
		}
		synctest.Wait()
		got := s.log.String()
		if strings.Count(got, "\n") != 1 || !strings.Contains(got, "connection refused") || strings.Contains(got, "secret") {
			t.Errorf("the log is %q, want one line of a refusal without the token", got)
		}
		if _, err := attach(t, s, aliceToken); err != nil {
			t.Errorf("afterwards the right token gets %v", err)
		}
	})
}

func TestOldestHalfOpenConnectionMakesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startInMemory(t, 4)
		var silent []carrier.Pending
		for range 3 * 4 {
			silent = append(silent, s.dial())
			synctest.Wait()
		}
		if n := s.tcp.Len(); n > 4 {
			t.Errorf("%d half-open connections, want at most 4", n)
		}
		if _, err := attach(t, s, aliceToken); err != nil {
			t.Errorf("a client among silent ones gets %v", err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := s.tcp.Len(); n != 0 {
			t.Errorf("%d half-open connections after a minute of silence, want 0", n)
		}
		for _, p := range silent {
			p.Close(carrier.CodeShutdown, "")
		}
	})
}

func TestFailedAcceptPausesAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startInMemory(t, 4)
		began := time.Now()
		for range 5 {
			s.errs <- &net.OpError{Op: "accept", Err: syscall.ECONNABORTED}
		}
		if _, err := attach(t, s, aliceToken); err != nil {
			t.Errorf("after failures a client gets %v", err)
		}
		if took := time.Since(began); took <= 0 || took > 10*time.Second {
			t.Errorf("five failures took %v", took)
		}
		s.errs <- io.ErrUnexpectedEOF
		synctest.Wait()
		select {
		case err := <-s.failed:
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("accept returned %v, want %v", err, io.ErrUnexpectedEOF)
			}
		default:
			t.Error("accept goes on after the listener failed")
		}
	})
}

func TestDrainEndsWhenNothingIsOpen(t *testing.T) {
	for name, open := range map[string]bool{"idle": false, "with a flow": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := startInMemory(t, 4)
				s.cfg.Drain = time.Minute
				session, err := attach(t, s, aliceToken)
				if err != nil {
					t.Fatal(err)
				}
				if open {
					flow, err := session.OpenFlow(discard{})
					if err != nil {
						t.Fatal(err)
					}
					flow.Send([]udpio.Message{{Body: []byte("x")}})
					synctest.Wait()
				}
				began := time.Now()
				drained := s.Drain()
				synctest.Wait()
				if !session.Leaving() {
					t.Error("the client was not told to go")
				}
				if _, err := attach(t, s, aliceToken); err == nil {
					t.Error("a new client got in")
				}
				<-drained
				want := drainLook
				if open {
					want = s.cfg.Drain
				}
				if took := time.Since(began); took < want || took > want+time.Second {
					t.Errorf("drained after %v, want %v", took, want)
				}
			})
		})
	}
}

// discard is both ends of flows that carry nothing back.
type discard struct{}

func (discard) OpenFlow(*tunnel.Flow) (tunnel.FlowHandler, tunnel.EndCode) { return discard{}, 0 }

func (discard) ServeStream(_ context.Context, in *tunnel.IncomingStream) { in.Refuse(0) }

func (discard) Receive([][]byte) {}

func (discard) Ended(tunnel.EndCode) {}
