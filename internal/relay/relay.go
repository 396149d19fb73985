// Package relay copies bytes both ways between a TCP connection and a stream of
// the tunnel, and keeps what TCP says about ends: a half-close stays a half-close
// and a reset stays a reset. Both ends of the tunnel use it.
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
	"wmproxy/tunnel"
)

// Result says what passed and how it ended.
type Result struct {
	ToStream   int64 // bytes read from TCP that the stream took
	FromStream int64 // bytes read from the stream that TCP took

	// Err is nil if both halves ended cleanly. Otherwise both sides were reset,
	// and it is the first thing that went wrong: an error of the TCP
	// connection, a *tunnel.ResetError, or the cause of ctx.
	Err error
}

// drainTime is the time for which no data has moved to the stream after the break of a TCP connection when the
// stream is reset. Data sent before the break can still arrive: an application may send everything and close at once.
const drainTime = 2 * time.Second

// Run copies until both halves have ended, one side has failed, or ctx ends. It
// owns c and s from the call on and has closed both when it returns.
//
// The end of what one side sends becomes a half-close of the other. Anything
// else ends both at once and never looks like a clean end: the stream gets Reset
// (CodeConnectionReset if TCP failed), TCP gets a RST.
//
// ahead has been read from c already; it goes to the stream first.
func Run(ctx context.Context, c *net.TCPConn, ahead []byte, s tunnel.Stream) Result {
	p := pair{tcp: c, conn: udpio.Quiet(c), stream: s}
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

// pair is the two sides of one relay.
type pair struct {
	tcp    *net.TCPConn
	conn   net.Conn // tcp, to read and write
	stream tunnel.Stream

	broken atomic.Bool // tcpBroken has taken tcp's error, so that reading returns io.EOF

	toStream   atomic.Int64
	fromStream int64 // written by its copier, read after both

	once sync.Once
	err  error
}

// tcpToStream copies what TCP sends, and its end.
func (p *pair) tcpToStream(ahead []byte) {
	if len(ahead) > 0 && !p.sent(p.stream.Write(ahead)) {
		return
	}
	var buf buffer
	defer buf.free()
	for {
		framed, err := buf.readFramed(p.conn)
		if len(framed) > tunnel.Headroom && !p.sent(p.stream.WriteFramed(framed)) {
			return
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			if p.broken.Load() {
				return // not the peer's end: tcpBroken resets the stream
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

// sent notes what a write to the stream returned and says whether to go on.
func (p *pair) sent(n int, err error) bool {
	if err != nil {
		p.abort(streamCode(err), err)
		return false
	}
	p.toStream.Add(int64(n))
	return true
}

// streamToTCP copies what the stream sends, and its end.
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

// drain resets the stream once the data that TCP had before it broke is relayed or stalls.
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

// tcpBroken ends a relay whose TCP connection the kernel has given up while nobody read or wrote it: its
// peer has ended its half and is gone, or the stream is stalled.
func (p *pair) tcpBroken() {
	p.broken.Store(true)
	if err := udpio.TakeError(p.tcp); err != nil {
		p.abort(tcpCode(err), err)
	}
}

// abort ends both sides at once, so that the other copier returns too. The
// first caller's reason counts.
func (p *pair) abort(code tunnel.ErrorCode, err error) {
	p.once.Do(func() {
		p.err = err
		p.stream.Reset(code)
		// Linger 0 makes Close send a RST (RFC 9293 section 3.10.4, ABORT): the
		// application must not take what it has for the whole.
		p.tcp.SetLinger(0)
		p.tcp.Close()
	})
}

// finish frees both sides after a clean end; what TCP has not sent yet, the
// kernel still sends. From here on an end of ctx does nothing.
func (p *pair) finish() {
	p.once.Do(func() {
		p.stream.Reset(tunnel.CodeNone)
		p.tcp.Close()
	})
}

// tcpCode is what the peer is told about a TCP connection that failed with err.
func tcpCode(err error) tunnel.ErrorCode {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) {
		return tunnel.CodeTimeout
	}
	return tunnel.CodeConnectionReset
}

// endCode returns the code to send to the peer when ctx ends for this cause.
func endCode(cause error) tunnel.ErrorCode {
	if reset := (*tunnel.ResetError)(nil); errors.As(cause, &reset) {
		return reset.Code
	}
	return tunnel.CodeShutdown
}

// streamCode is what our half of the stream ends with once the stream itself
// failed with err. It is the peer's own code, if it was the peer.
func streamCode(err error) tunnel.ErrorCode {
	var reset *tunnel.ResetError
	if errors.As(err, &reset) {
		return reset.Code
	}
	return tunnel.CodeInternal
}
