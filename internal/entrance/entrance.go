// Package entrance accepts connections of applications, bounds those that have not asked for anything yet, and
// chooses the protocol of each by its first byte. What a protocol has read becomes a Request or an Association and
// is answered with a Result, so that who serves it need not know the protocol.
package entrance

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"time"

	"wmproxy/internal/admit"
	"wmproxy/internal/udpio"
)

// Defaults and bounds of an entrance.
const (
	// HandshakeTimeout bounds the time from accept to the end of the request.
	HandshakeTimeout = 10 * time.Second

	defaultMaxHalfOpen = 4096 // an application may open all its streams at once

	// lingerTime and lingerBytes bound the time and the data for which a refused application may
	// go on sending. Closing at once, with bytes unread, would be a reset, and a reset
	// can destroy the answer before the application has read it.
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// Protocol is one way in which applications ask.
type Protocol interface {
	// Begin returns the receiver of a connection whose first byte is first, or nil if the protocol does
	// not begin with that. It must not wait.
	Begin(c *Conn, first byte) Receiver
}

// Server accepts connections for its protocols. Its fields must not change once Serve was called.
type Server struct {
	// Protocols are asked in order.
	Protocols []Protocol

	// MaxHalfOpen bounds the connections that have not finished their request;
	// 0 is 4,096. Beyond it the oldest is closed: applications finish in
	// milliseconds, and an attacker's wait for the deadline.
	MaxHalfOpen int

	// MakeRoom, if set, is called when the system has no descriptor left for a
	// connection. It may end an association or a stream of a user with more descriptors than
	// there are half-open connections, and reports whether it did; if not, the oldest
	// half-open connection is closed. It must not wait.
	MakeRoom func(halfOpen int) bool

	Log *slog.Logger // nil discards

	halfOpen connSet
}

// Serve accepts connections from ln, which Listen is for, until ctx ends; then it closes ln and every
// connection at once and returns nil when all of it has ended. Errors of the
// system, such as having no descriptors left, are waited out. Any other error
// of ln ends Serve in the same way and is returned. Several calls may run at once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sv := &serving{Server: s, ctx: ctx}
	acceptor := udpio.NewAcceptor(ln)
	sv.wg.Go(func() {
		<-ctx.Done()
		acceptor.Close()
		sv.open.closeAll()
	})
	err := sv.accept(acceptor)
	cancel()
	sv.wg.Wait()
	return err
}

// serving is one call of Serve.
type serving struct {
	*Server
	ctx  context.Context
	open connSet
	wg   sync.WaitGroup
}

// accept serves connections until the listener is closed.
func (sv *serving) accept(acceptor udpio.Acceptor) error {
	for {
		conn, err := admit.Accept(sv.ctx, acceptor.Accept, func(err error) {
			sv.makeRoom(err)
			sv.log().Warn("accepting connections fails; trying on", "err", err)
		})
		if sv.ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("entrance: accepting connections: %w", err)
		}
		sv.serve(conn)
		// In a flood Accept never waits: without this, the newest connection would be
		// the oldest before it had its first turn.
		runtime.Gosched()
	}
}

// makeRoom frees descriptors if err reports that none are left.
func (s *Server) makeRoom(err error) {
	if !admit.NoDescriptors(err) {
		return
	}
	if s.MakeRoom == nil || !s.MakeRoom(s.halfOpen.len()) {
		s.halfOpen.closeOldest()
	}
}

func (s *Server) maxHalfOpen() int {
	if s.MaxHalfOpen > 0 {
		return s.MaxHalfOpen
	}
	return defaultMaxHalfOpen
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}
