package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/wire"
)

// RefusedError is the far end's answer to a stream it did not connect.
type RefusedError struct {
	Code byte // a SOCKS5 reply code (RFC 1928 section 6)
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("the far end could not connect (SOCKS5 reply %d)", e.Code)
}

// OpenStream asks the peer to connect to addr, which is an address as SOCKS5
// writes it, and waits for its answer: the stream and the bound address, or a
// *RefusedError. ctx bounds the wait. While nothing is attached it waits up to
// attachWait and then returns ErrNotAttached. Where the carrier ends, or is doubted
// while another works, before the answer is there, the peer is asked once more over
// another carrier; it may then connect twice, but on one of the two nothing is sent.
// If the carrier gives no sign of life for attachWait, or is in doubt when ctx ends, the error
// wraps ErrUnanswered, and else ctx's. If all carriers have as many streams as they may it wraps ErrStreamLimit.
func (s *Session) OpenStream(ctx context.Context, addr []byte) (st carrier.Stream, bound []byte, err error) {
	if len(addr) > wire.MaxStreamAddr {
		return nil, nil, fmt.Errorf("tunnel: address of %d bytes", len(addr))
	}
	r := streamRequest{addr: addr, life: s.now()}
	for asked := 1; ; {
		p, err := s.streamCarrier(ctx, &r)
		if err != nil {
			return nil, nil, err
		}
		st, bound, err := s.openOver(ctx, p, &r, asked < maxAsked)
		if err == nil {
			return st, bound, nil
		}
		failed := (*askedError)(nil)
		switch {
		case errors.Is(err, ErrUnanswered):
			return nil, nil, err
		case ctx.Err() != nil:
			return nil, nil, p.unanswered(ctx, err)
		case limitReached(err):
			r.full = append(r.full, p) // the peer has connected to nothing
			if !errors.Is(err, carrier.ErrStreamLimit) {
				r.refused = err
			}
			continue
		case !errors.As(err, &failed) && p.c.Err() != nil:
			continue // the peer was not asked
		case !errors.As(err, &failed):
			return nil, nil, fmt.Errorf("opening a stream over %s: %w", p.Kind(), err)
		case asked == maxAsked || p.c.Err() == nil && !failed.left:
			return nil, nil, failed.err
		}
		asked++
		s.cfg.Log.Debug("a stream is asked for again", slog.Any("reason", err))
	}
}

// streamRequest is a stream that is about to be opened.
type streamRequest struct {
	addr []byte
	life time.Duration // the last sign of life of a carrier that it was on, or its beginning
	full []*Path       // carriers that take no more streams

	refused error // the peer said so: another carrier would not help
}

// limitReached reports whether a carrier, here or at the peer, had as many streams as it may.
func limitReached(err error) bool {
	reset, ok := errors.AsType[*carrier.ResetError](err)
	return errors.Is(err, carrier.ErrStreamLimit) || ok && reset.Code == carrier.CodeLimit
}

// ErrUnanswered means that a stream's carrier fell silent before the peer had answered.
var ErrUnanswered = errors.New("the far end did not answer")

// unanswered is the error of a stream that waited on a for as long as ctx lived.
func (p *Path) unanswered(ctx context.Context, err error) error {
	if _, why := p.good(); why != "" {
		return fmt.Errorf("%w: %s %s", ErrUnanswered, p.Kind(), why)
	}
	if ended := p.Err(); ended != nil {
		return fmt.Errorf("%w: %s ended: %w", ErrUnanswered, p.Kind(), ended)
	}
	return fmt.Errorf("%w: %w", context.Cause(ctx), err)
}

// askedError is the failure of a stream that the peer may have been asked for.
type askedError struct {
	left bool // its carrier was left for another
	err  error
}

func (e *askedError) Error() string { return e.err.Error() }
func (e *askedError) Unwrap() error { return e.err }

// openOver is OpenStream over one carrier, which it may leave for a better one.
func (s *Session) openOver(ctx context.Context, p *Path, r *streamRequest, mayLeave bool) (carrier.Stream, []byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	var why verdict
	var watch sync.WaitGroup
	watch.Go(func() {
		if why = s.watchOpening(ctx, p, r, mayLeave); why != "" {
			cancel()
		}
	})
	st, bound, err := p.open(ctx, r.addr)
	cancel()
	watch.Wait()
	if err == nil {
		return st, bound, nil
	}
	r.life = max(r.life, time.Duration(p.heard.Load()))
	failed := (*askedError)(nil)
	refused := (*RefusedError)(nil)
	switch {
	case errors.As(err, &refused):
	case why == isMute:
		_, silent := p.good()
		return nil, nil, fmt.Errorf("%w: %s %s", ErrUnanswered, p.Kind(), silent)
	case why == isLeft && errors.As(err, &failed):
		failed.left = true
	case why == isLeft:
		err = &askedError{left: true, err: err}
	}
	return nil, nil, err
}

// open asks the peer over a.
func (p *Path) open(ctx context.Context, addr []byte) (carrier.Stream, []byte, error) {
	p.touch(p.s.now()) // its silence counts from now on
	opened, err := p.c.OpenStream(ctx)
	if err != nil {
		return nil, nil, err
	}
	st := p.carry(opened)
	stop := context.AfterFunc(ctx, func() { st.Reset(carrier.CodeTimeout) })
	bound, err := request(st, addr)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		st.Reset(carrier.CodeNone)
		return nil, nil, &askedError{err: err}
	}
	return st, bound, nil
}

// verdict is why a carrier is no longer waited for.
type verdict string

const (
	isLeft verdict = "another one works"
	isMute verdict = "it gives no sign of life"
)

// lookEvery is the interval of looks at a carrier while a stream is being opened over it.
const lookEvery = attachWait / 20

// watchOpening waits until a is not worth waiting for, and returns why; "" is the end of ctx. Until
// then a counts as in use, so that its silence shows.
func (s *Session) watchOpening(ctx context.Context, p *Path, r *streamRequest, mayLeave bool) verdict {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		s.mu.Lock()
		next, changed := s.streamPath, s.changed
		s.mu.Unlock()
		good, _ := p.good()
		if mayLeave && (!good || p.c.Err() != nil) && next != nil && next != p && next.serviceable() && next.c.Err() == nil {
			return isLeft
		}
		if p.mute(r.life) {
			return isMute
		}
		select {
		case <-changed:
		case <-look.C:
			p.touch(s.now())
		case <-ctx.Done():
			return ""
		}
	}
}

// mute reports whether the carrier gave no sign of life for attachWait, since then at the earliest,
// though it was asked for one.
func (p *Path) mute(since time.Duration) bool {
	now := p.s.now()
	return p.c.Err() == nil && now-max(since, time.Duration(p.heard.Load())) >= attachWait &&
		p.openPing(now) >= min(p.s.cfg.Timers.Suspect, attachWait/2)
}

func request(st carrier.Stream, addr []byte) (bound []byte, err error) {
	if _, err := st.Write(wire.AppendStreamHeader(nil, wire.StreamConnect, addr)); err != nil {
		return nil, fmt.Errorf("asking for a stream: %w", err)
	}
	code, bound, err := wire.ReadStreamHeader(st)
	if err != nil {
		return nil, fmt.Errorf("waiting for the far end's answer: %w", err)
	}
	if code != 0 {
		return nil, &RefusedError{Code: code}
	}
	return bound, nil
}

// Exit is what a session calls when the peer opens something.
type Exit interface {
	// OpenFlow is called with the first datagram of a flow, before it is
	// delivered. It must not wait. A nil handler refuses the flow with code; EndRetry
	// is not told to the peer, whose next datagram opens the flow again.
	OpenFlow(f *Flow) (h FlowHandler, code EndCode)

	// ServeStream is called in a goroutine of its own and returns when the
	// stream is done with. ctx ends with the session.
	ServeStream(ctx context.Context, in *IncomingStream)
}

// IncomingStream is a stream the peer asks for. Accept or Refuse is called once.
type IncomingStream struct {
	// Addr is the destination as the peer wrote it: ATYP, address, port, at most
	// MaxStreamAddr bytes, not yet checked.
	Addr []byte

	st carrier.Stream
}

// Accept tells the peer that the stream is connected, with the bound address as
// SOCKS5 writes it, and returns the stream.
func (in *IncomingStream) Accept(bound []byte) (carrier.Stream, error) {
	if err := in.answer(0, bound); err != nil {
		in.st.Reset(carrier.CodeNone)
		return nil, err
	}
	return in.st, nil
}

// Context is the stream's.
func (in *IncomingStream) Context() context.Context { return in.st.Context() }

// Refuse tells the peer why not, as a SOCKS5 reply code (RFC 1928 section 6), and
// frees the stream.
func (in *IncomingStream) Refuse(code byte) {
	if err := in.answer(code, nil); err == nil {
		_ = in.st.CloseWrite()
		// The peer resets once it has read the answer.
		_ = in.st.SetDeadline(time.Now().Add(streamHeaderTimeout))
		_, _ = in.st.Read(make([]byte, 1))
	}
	in.st.Reset(carrier.CodeNone)
}

func (in *IncomingStream) answer(code byte, bound []byte) error {
	_, err := in.st.Write(wire.AppendStreamHeader(nil, code, bound))
	return err
}

// goStream serves a stream that the peer opened, in a goroutine of its own; false
// says that the session has ended. The caller has counted it in s.streams.
func (s *Session) goStream(st carrier.Stream) bool {
	ok := s.spawn(func() {
		defer s.streams.Add(-1)
		s.serveStream(st)
	})
	if !ok {
		s.streams.Add(-1)
	}
	return ok
}

func (s *Session) serveStream(st carrier.Stream) {
	_ = st.SetDeadline(time.Now().Add(streamHeaderTimeout))
	kind, addr, err := wire.ReadStreamHeader(st)
	if err != nil {
		st.Reset(carrier.CodeProtocol)
		return
	}
	_ = st.SetDeadline(time.Time{})
	in := &IncomingStream{Addr: addr, st: st}
	if kind != wire.StreamConnect || s.cfg.Exit == nil {
		in.Refuse(replyUnsupported)
		return
	}
	s.cfg.Exit.ServeStream(s.ctx, in)
}

// replyUnsupported is SOCKS5's "command not supported".
const replyUnsupported = 7
