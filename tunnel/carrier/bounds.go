package carrier

import (
	"errors"
	"time"
)

// ALPN is the application protocol that all transports negotiate (RFC 7301).
const ALPN = "wmproxy/1"

const (
	// MinBundle is the smallest MaxBundle of any carrier in bytes: what fits into
	// one DATAGRAM frame on a path of 1200-byte QUIC packets (RFC 9000 section 14).
	MinBundle = 1100

	// MaxBundleSize is the largest bundle any carrier takes or sends in bytes. On
	// yamux a datagram waits behind at most one such write.
	MaxBundleSize = 16 << 10

	// Headroom is how many bytes the header of a chunk takes at most.
	Headroom = 4

	// MaxWrite is the number of bytes that are one yamux frame, as one chunk, where
	// the connection is fast: eight TLS records with the heads. One byte more is a frame more.
	// SmallWrite is the same for a slow connection: one record.
	MaxWrite   = 8*tlsRecord - yamuxHead - Headroom
	SmallWrite = tlsRecord - yamuxHead - Headroom

	tlsRecord = 16 << 10
	yamuxHead = 12

	// MaxReason bounds the sentence of a close in bytes, so that it fits into one packet.
	MaxReason = 512

	// HandshakeTimeout bounds TLS, Hello and Welcome together.
	HandshakeTimeout = 5 * time.Second

	// DefaultDead is after how much silence a session takes a carrier for dead by default.
	DefaultDead = 30 * time.Second

	// MaxDead bounds that time if it is set.
	MaxDead = 4 * time.Minute

	// KernelOverhead is the factor by which the kernel's buffers exceed their payload.
	KernelOverhead = 2

	// AlertNoProtocol is the alert of a TLS server that does not speak ALPN (RFC 7301 section 3.2).
	AlertNoProtocol = 120

	// leastIdleTimeout is the least that IdleTimeout returns.
	leastIdleTimeout = 30 * time.Second
)

// LongAgo is a deadline that makes a call return instead of wait.
var LongAgo = time.Unix(1, 0)

// ErrStreamLimit means that a carrier, or the session, has as many streams as it may.
var ErrStreamLimit = errors.New("no more TCP streams may be open")

// ErrALPN means that the server does not speak ALPN.
var ErrALPN = errors.New("the server does not speak " + ALPN)

// ErrMute means that a TCP connection to the server opened and that TLS got no answer on it.
var ErrMute = errors.New("the connection opened and nothing came on it")

// CutReason cuts a reason to MaxReason bytes.
func CutReason(reason string) string { return reason[:min(len(reason), MaxReason)] }

// IdleTimeout returns the time after which a transport gives a silent connection up by itself: a
// quarter more than dead, 0 its default, so that the session notices first and says why.
func IdleTimeout(dead time.Duration) time.Duration {
	if dead <= 0 {
		dead = DefaultDead
	}
	dead = min(dead, MaxDead)
	return max(leastIdleTimeout, dead+dead/4)
}
