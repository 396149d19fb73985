// Package relay copies bytes both ways between a TCP connection and a stream of the
// tunnel. A half-close stays a half-close and a reset stays a reset. Both ends of
// the tunnel use it.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"wmproxy/internal/udpio"
	"wmproxy/tunnel/carrier"
)

// Result is the outcome of a relay.
type Result struct {
	ToStream   int64 // bytes read from TCP and written to the stream
	FromStream int64 // bytes read from the stream and written to TCP

	// Err is nil if both halves ended cleanly. Otherwise both sides were reset, and
	// Err is the first error: one of the TCP connection, a *carrier.ResetError, or the
	// cause of ctx.
	Err error
}

// drainTime is the time without data after which the stream of a broken TCP connection is reset. Data sent before the
// break can still arrive: an application may send everything and close at once.
const drainTime = 2 * time.Second

// Run copies until both halves have ended, one side has failed, or ctx is done. It
// owns c and s from the call on and has closed both when it returns.
//
// The end of one side's data becomes a half-close of the other side. Anything else
// ends both sides at once and never looks like a clean end: the stream is reset
// (with CodeConnectionReset if TCP failed), and TCP sends a RST.
//
// ahead is data that has been read from c already; it is written to the stream first.
func Run(ctx context.Context, c *net.TCPConn, ahead []byte, s carrier.Stream) Result {
	p := pair{tcp: c, conn: udpio.RawConn(c), stream: s}
	unwatch := udpio.OnBroken(c, p.drain)
	defer unwatch()
	stop := context.AfterFunc(ctx, func() { p.abort(endCode(context.Cause(ctx)), context.Cause(ctx)) })
	defer stop()
	if counts, ok := s.(interface{ CountBeside(func() int64) }); ok {
		counts.CountBeside(func() int64 { return udpio.Buffered(c) })
	}
	lost := context.AfterFunc(s.Context(), func() {
		err := context.Cause(s.Context())
		p.abort(streamCode(err), err)
	})

	var wg sync.WaitGroup
	wg.Go(p.streamToTCP)
	p.tcpToStream(ahead)
	wg.Wait()
	lost()
	p.finish()
	return Result{ToStream: p.toStream.Load(), FromStream: p.fromStream, Err: p.err}
}

// pair is the two sides of a relay.
type pair struct {
	tcp    *net.TCPConn
	conn   net.Conn // tcp, to read and write
	stream carrier.Stream

	broken atomic.Bool // tcpBroken has taken tcp's error, so that reads return io.EOF

	toStream   atomic.Int64
	fromStream int64 // written by streamToTCP, read after its end

	once sync.Once
	err  error
}

// tcpToStream copies TCP's data and its end to the stream.
func (p *pair) tcpToStream(ahead []byte) {
	if len(ahead) > 0 && !p.sent(p.stream.Write(ahead)) {
		return
	}
	var buf buffer
	defer buf.free()
	for {
		framed, err := buf.readFramed(p.conn)
		if len(framed) > carrier.Headroom && !p.sent(p.stream.WriteFramed(framed)) {
			return
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			if p.broken.Load() {
				return // the peer has not ended its half: tcpBroken resets the stream
			}
			if err := p.stream.CloseWrite(); err != nil {
				p.abort(streamCode(err), err)
			}
			return
		default:
			p.abort(tcpCode(err), err)
			return
		}
	}
}

// sent takes the results of a write to the stream and reports whether to continue.
func (p *pair) sent(n int, err error) bool {
	if err != nil {
		p.abort(streamCode(err), err)
		return false
	}
	p.toStream.Add(int64(n))
	return true
}

// streamToTCP copies the stream's data and its end to TCP.
func (p *pair) streamToTCP() {
	var buf buffer
	defer buf.free()
	for {
		data, err := buf.read(p.stream)
		if len(data) > 0 {
			n, err := p.conn.Write(data)
			p.fromStream += int64(n)
			if err != nil {
				p.abort(tcpCode(err), err)
				return
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			if err := p.tcp.CloseWrite(); err != nil {
				p.abort(tcpCode(err), err)
			}
			return
		default:
			p.abort(streamCode(err), err)
			return
		}
	}
}

// drain resets the stream once the data that TCP had before it broke is relayed or does
// not move any more.
func (p *pair) drain() {
	moved := p.toStream.Load()
	time.AfterFunc(drainTime, func() {
		if p.toStream.Load() != moved {
			p.drain()
			return
		}
		p.tcpBroken()
	})
}

// tcpBroken ends the relay after the kernel gave up the TCP connection while no read or write was under way: the
// peer had ended its half and is gone, or the stream is stalled.
func (p *pair) tcpBroken() {
	p.broken.Store(true)
	if err := udpio.TakeError(p.tcp); err != nil {
		p.abort(tcpCode(err), err)
	}
}

// abort resets both sides, so that both copiers return. Only the first call has an
// effect.
func (p *pair) abort(code carrier.ErrorCode, err error) {
	p.once.Do(func() {
		p.err = err
		p.stream.Reset(code)
		// Linger 0 makes Close send a RST (RFC 9293 section 3.10.4, ABORT): the
		// application must not take the data it has for all of it.
		p.tcp.SetLinger(0)
		p.tcp.Close()
	})
}

// finish closes both sides after a clean end. The kernel still sends the rest of TCP's
// data. The end of ctx has no effect afterwards.
func (p *pair) finish() {
	p.once.Do(func() {
		p.stream.Reset(carrier.CodeNone)
		p.tcp.Close()
	})
}

// tcpCode returns the code that the peer gets after the TCP connection failed with err.
func tcpCode(err error) carrier.ErrorCode {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) {
		return carrier.CodeTimeout
	}
	return carrier.CodeConnectionReset
}

// endCode returns the code that the peer gets after ctx ended with this cause.
func endCode(cause error) carrier.ErrorCode {
	if reset := (*carrier.ResetError)(nil); errors.As(cause, &reset) {
		return reset.Code
	}
	return carrier.CodeShutdown
}

// streamCode returns the code with which our half of the stream ends after the stream
// failed with err: the peer's own, if the peer reset it.
func streamCode(err error) carrier.ErrorCode {
	var reset *carrier.ResetError
	if errors.As(err, &reset) {
		return reset.Code
	}
	return carrier.CodeInternal
}
