package egress

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"syscall"

	"wmproxy/internal/share"
	"wmproxy/internal/udpio"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

// Flows and streams take descriptors of the pool that all users share.
var (
	_ share.Holder = (*flow)(nil)
	_ share.Holder = (*streamUse)(nil)
)

// errGivenUp is the reason of a stream that ends because others need its socket.
var errGivenUp = &carrier.ResetError{Code: carrier.CodeLimit, Cause: errors.New("others need its socket")}

// exhausted reports whether the system had no descriptor, or no port, for a socket.
func exhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.EADDRINUSE)
}

// each returns the number of descriptors that a flow or stream takes of the room.
func (e *Exits) each() int {
	if e.cfg.Counted {
		return 0
	}
	return 1
}

// openSocket opens the flow's socket. It is called when the flow is opened, and by Receive if
// others have taken the socket.
func (f *flow) openSocket() tunnel.EndCode {
	u, e := f.user, f.user.exits
	f.passed.Store(e.cfg.Room.Now())
	lease, err := e.cfg.Room.Take(u.Name, share.Flow, e.each(), f)
	if errors.Is(err, share.ErrBusy) {
		return tunnel.EndRetry
	}
	if err != nil {
		e.refusedByLimit(u, "flow", err)
		return tunnel.EndLimit
	}
	sock, err := e.listen()
	if exhausted(err) {
		if freed := e.cfg.Room.Squeeze(u.Name, share.Flow); freed != nil {
			select {
			case <-freed:
				sock, err = e.listen()
			default: // soon
				lease.Release()
				return tunnel.EndRetry
			}
		}
	}
	if err != nil {
		lease.Release()
		e.refusedByLimit(u, "flow", err)
		return tunnel.EndLimit
	}
	sock.Start(f.replies)
	f.mu.Lock()
	f.lease = lease
	f.sock.Store(sock)
	f.mu.Unlock()
	// Checked after the socket is stored: a goroutine that ends the flow or takes its socket either
	// finds the socket, or was earlier and is noticed here.
	if f.ended.Load() || lease.Taken() {
		f.closeSocket(lease)
		return tunnel.EndRetry
	}
	return tunnel.EndNormal
}

func (e *Exits) listen() (*udpio.Socket, error) {
	any6 := netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	return udpio.Listen(any6, udpio.Config{NoOffload: e.cfg.NoOffload})
}

// reopen calls openSocket at most once a second, if the flow's socket was taken.
func (f *flow) reopen() bool {
	now := f.user.exits.cfg.Room.Now()
	if f.tried > now {
		return false
	}
	f.tried = now + 1
	return f.openSocket() == tunnel.EndNormal
}

// closeSocket closes the flow's socket if it has this lease, or any if of is nil.
func (f *flow) closeSocket(of *share.Lease) {
	f.mu.Lock()
	var sock *udpio.Socket
	lease := f.lease
	if of == nil || lease == of {
		sock = f.sock.Swap(nil)
		f.lease = nil
	}
	f.mu.Unlock()
	if sock != nil {
		sock.Close()
		sock.Wait()
		lease.Release()
	}
}

// leaveRoom tells the pool that the flow's socket, if it has one, is about to be closed.
func (f *flow) leaveRoom() {
	f.mu.Lock()
	lease := f.lease
	f.mu.Unlock()
	if lease != nil {
		lease.Leave()
	}
}

// LastUsed returns the time of the last datagram.
func (f *flow) LastUsed() uint32 { return f.passed.Load() }

// GiveUp closes the socket. The flow stays, and its next datagram requests another one.
func (f *flow) GiveUp(l *share.Lease) {
	f.closeSocket(l)
	l.Release()
}

// streamUse is the holder of a stream's descriptor.
type streamUse struct {
	pool   *share.Pool
	passed atomic.Uint32
	cancel context.CancelCauseFunc
}

func (s *streamUse) note() { s.passed.Store(s.pool.Now()) }

// LastUsed returns the time of the last data.
func (s *streamUse) LastUsed() uint32 { return s.passed.Load() }

// GiveUp resets the stream. ServeStream then releases the lease.
func (s *streamUse) GiveUp(*share.Lease) { s.cancel(errGivenUp) }

// squeeze frees a descriptor for a user if the system has none left.
func (e *Exits) squeeze(ctx context.Context, u *UserExit) bool {
	freed := e.cfg.Room.Squeeze(u.Name, share.Stream)
	if freed == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.DialTimeout)
	defer cancel()
	select {
	case <-freed:
		return true
	case <-ctx.Done():
		return false
	}
}
