// Package carrier is the contract between sessions and the connections that carry them: a
// Pending connection passes the handshake and becomes a Carrier, which carries bundles of
// datagrams, streams and control messages. It knows none of its implementations.
package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Kind is a transport. Its name is that of the option, and of logs, events and errors.
type Kind uint8

// The kinds of carrier; the numbers stand on the wire.
const (
	KindQUIC  Kind = 1
	KindYamux Kind = 2
	KindPipe  Kind = 3
)

func (k Kind) String() string {
	switch k {
	case KindQUIC:
		return "quic"
	case KindYamux:
		return "yamux"
	case KindPipe:
		return "pipe"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Traits are the properties of a transport by which sessions choose and treat its carriers.
type Traits struct {
	Kind Kind

	// Datagrams, and new streams, travel over the carrier of the highest rank that works.
	DatagramRank, StreamRank int

	// Exact reports whether a bundle of exactly MaxBundle bytes costs less to send than one
	// that is almost as large.
	Exact bool

	// InOrder reports whether a packet that has to be sent again holds up all that was sent after it.
	InOrder bool

	// OwnDescriptor reports whether a server has a descriptor for each connection.
	OwnDescriptor bool

	// SmallSegments is set on the client if the path takes small packets alone.
	SmallSegments bool

	// LossTolerant reports whether the connection, which sends lost packets again, stays fast then:
	// its congestion control does not take each loss for congestion.
	LossTolerant bool

	// Congestion names the congestion control that the kernel uses for this connection; "" is
	// unknown, or the transport's own.
	Congestion string
}

// Stats are the counts of a transport.
type Stats struct {
	RTT time.Duration // smoothed

	// Bytes of the whole connection: datagrams, streams and control, with the
	// transport's own framing, but without the headers of TCP, UDP and IP.
	BytesUp, BytesDown uint64

	// PacketsUp are QUIC packets or TCP segments with data, those sent again
	// among them. PacketsLost are those that QUIC takes for lost, which may become fewer
	// again, or that TCP has sent again.
	PacketsUp, PacketsLost uint64
}

// Holder is a carrier or a stream that can report how many bytes it holds for
// a peer: on the heap, and in the kernel with the kernel's own overhead.
type Holder interface {
	Held() (heap, kernel int64)
}

// WindowHolder is a carrier whose transport does not report how much it holds for streams, so
// that only bounds are known. Its streams are WindowedStreams.
type WindowHolder interface {
	Holder

	// Unread returns a bound on the payload that has arrived and was not read, in bytes.
	Unread() int64

	// Window returns a bound on the bytes held for all streams together.
	Window() int64
}

// WindowedStream is a stream of a WindowHolder.
type WindowedStream interface {
	// Window returns a bound on the bytes held for the stream, and the bound that it began with.
	Window() (bytes, first int64)
}

// Carrier is one connection to the peer that has passed TLS and the handshake.
// Everything a session sends goes through this interface, and one suite of tests runs on all
// implementations.
type Carrier interface {
	// Traits returns the properties of the carrier, which do not change.
	Traits() Traits

	// Stats returns what the transport has counted since it began; zero is not known. It
	// takes a lock or a system call: not for every bundle.
	Stats() Stats

	LocalAddr() net.Addr
	RemoteAddr() net.Addr

	// MaxBundle is the size in bytes of the largest bundle that SendBundle takes
	// now. It may grow and shrink with the path; it is at least MinBundle.
	MaxBundle() int

	// SendBundle hands over one bundle of at most MaxBundle bytes. It does not
	// keep b. It may wait until the transport has room, never longer than the
	// carrier lives. One goroutine at a time calls it. If the path shrank below
	// len(b) it returns *BundleTooLargeError and the carrier lives on; any other
	// error means that the carrier has ended.
	SendBundle(b []byte) error

	// ReceiveBundles waits until at least one bundle has arrived, puts as many as
	// are there without further waiting into dst and returns how many. The
	// bundles may be used, and written to, until the next call. One goroutine at
	// a time calls it. Bundles arrive unchanged; over QUIC some are lost.
	ReceiveBundles(dst [][]byte) (int, error)

	// Control is the reliable, ordered stream for control messages. Reads and
	// writes on it each belong to one goroutine.
	Control() io.ReadWriter

	// OpenStream opens a stream to the peer. If as many are open as may be it returns
	// ErrStreamLimit at once. It does not wait for the peer to accept this stream, but until ctx ends
	// it may wait for earlier streams to be accepted.
	OpenStream(ctx context.Context) (Stream, error)

	// AcceptStream returns the next stream that the peer opened.
	AcceptStream(ctx context.Context) (Stream, error)

	// Close ends the carrier and tells the peer code and reason where the
	// transport can. It unblocks every other call and returns once the carrier's
	// goroutines have ended. Further calls do nothing.
	Close(code ErrorCode, reason string)

	// Done is closed when the carrier has ended, for whatever reason.
	Done() <-chan struct{}

	// Err says why the carrier ended; nil while it lives. A peer's Close is a
	// *CloseError, our own is net.ErrClosed.
	Err() error
}

// Stream is one two-way byte stream. One goroutine may read and one write at the
// same time; the other methods may be called from any.
type Stream interface {
	// Read returns io.EOF only after the peer's CloseWrite, when all it wrote
	// has been read. A stream that was reset, or whose carrier ended, returns a
	// *ResetError instead, never io.EOF.
	Read(p []byte) (int, error)

	// Write waits while the peer does not read. After the peer's reset or the
	// carrier's end it returns a *ResetError.
	Write(p []byte) (int, error)

	// WriteFramed is Write of b[Headroom:]. A carrier whose streams have frames puts the header into the
	// Headroom bytes in front, instead of copying the rest. Afterwards b is the caller's again.
	WriteFramed(b []byte) (int, error)

	// CloseWrite ends our half cleanly; reading goes on. Further calls do nothing.
	CloseWrite() error

	// Reset abandons both halves and unblocks Read and Write on both sides.
	// It never waits. Where both halves have ended cleanly it only frees the stream.
	// Every user of a stream calls it once done, clean or not.
	Reset(code ErrorCode)

	// Context ends when the stream was reset, by either side, or its carrier has ended, also while
	// nobody reads or writes, and its cause says which. After our Reset it has ended. Over yamux it
	// outlives the carrier by a few seconds, in which buffered data can still be read. Over QUIC, where only
	// the peer still sends, the peer's reset shows in Read alone.
	Context() context.Context

	// SetDeadline bounds the Reads and Writes under way and those to come, which
	// then return os.ErrDeadlineExceeded. The zero time means no bound.
	SetDeadline(t time.Time) error
}

// Pending is a connection that has passed TLS and nothing else: it can carry the
// handshake, and then become a Carrier or be refused.
type Pending interface {
	Traits() Traits
	LocalAddr() net.Addr
	RemoteAddr() net.Addr

	// Protocol is the negotiated ALPN; a server may find anything here.
	Protocol() string

	// ExportKey returns n bytes of keying material (RFC 8446 section 7.5) that
	// are the same on both ends of this connection and of no other.
	ExportKey(label string, n int) ([]byte, error)

	// Handshake is the byte stream for Hello and Welcome. On the server it waits
	// for the client to open it. ctx bounds the call and every Read and Write after it until Start.
	Handshake(ctx context.Context) (io.ReadWriter, error)

	// Start turns the connection into a carrier, or fails; then Close it. Both ends call it after the handshake,
	// and neither touches the handshake stream or Pending again.
	// The deadline of ctx bounds Start alone; its later end does not touch the carrier.
	Start(ctx context.Context) (Carrier, error)

	// Close refuses the connection instead. It tells the peer where the transport
	// can, does not wait for it, and may be called at any time before Start.
	Close(code ErrorCode, reason string)
}

// ErrorCode says why a carrier or a stream ended. On QUIC it is the application
// error code (RFC 9000 section 20.2).
type ErrorCode uint64

// Error codes; the numbers stand on the wire.
const (
	CodeNone            ErrorCode = 0 // normal end
	CodeShutdown        ErrorCode = 1 // the process ends
	CodeProtocol        ErrorCode = 2 // the peer broke the protocol
	CodeVersion         ErrorCode = 3 // no version in common
	CodeALPN            ErrorCode = 4 // wrong or missing ALPN
	CodeAuth            ErrorCode = 5 // unknown user or wrong token
	CodeTimeout         ErrorCode = 6 // a deadline passed
	CodeLimit           ErrorCode = 7 // a limit was reached
	CodeSession         ErrorCode = 8 // the session is gone or its proof is wrong
	CodeReplaced        ErrorCode = 9 // a newer carrier took this one's place
	CodeInternal        ErrorCode = 10
	CodeConnectionReset ErrorCode = 11 // the TCP connection behind a stream was reset
	CodeDraining        ErrorCode = 12 // the server is about to stop
)

// CloseError is the reason a peer gave for ending a carrier or refusing a connection.
type CloseError struct {
	Code   ErrorCode
	Reason string // a sentence, from the peer unless Own: show that quoted
	Own    bool   // it was this end that closed
}

func (e *CloseError) Error() string {
	if e.Own {
		return e.Reason
	}
	return fmt.Sprintf("the peer closed the connection with code %d: %q", uint64(e.Code), e.Reason)
}

// ResetError is returned by a stream that did not end cleanly.
type ResetError struct {
	Code  ErrorCode
	Cause error // what ended the carrier, where that is the reason; may be nil
}

func (e *ResetError) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("stream reset: %v", e.Cause)
	}
	return fmt.Sprintf("stream reset with code %d", uint64(e.Code))
}

func (e *ResetError) Unwrap() error { return e.Cause }

// BundleTooLargeError says that the path no longer carries a bundle of this size.
type BundleTooLargeError struct {
	Max int // bytes
}

func (e *BundleTooLargeError) Error() string {
	return fmt.Sprintf("bundle larger than the path's %d bytes", e.Max)
}

// IsTimeout reports whether err means that a deadline passed.
func IsTimeout(err error) bool {
	var n net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}
