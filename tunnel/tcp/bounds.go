package tcp

import (
	"time"

	"wmproxy/tunnel/carrier"
)

// bbr is the congestion control that the tunnel's connections ask for. Unlike the kernel's usual
// one it does not take each loss for congestion, and keeps queues short.
const bbr = "bbr"

const (
	// backlog bounds the streams that wait for AcceptStream, on both ends:
	// yamux grants each 256 KiB unasked. Further opens wait, so it also bounds
	// the streams opened per round trip.
	backlog = 256

	// maxStreams bounds the streams that each end has open at once.
	maxStreams = 1024

	// maxHeld bounds the streams that yamux holds in all, those included
	// that one end is done with and the other is not. No honest peer comes near.
	maxHeld = 4 * maxStreams

	// receivedTime is how long at most a stream keeps the buffer that received bytes have
	// waited in: yamux grows it to all that waited at a time, and frees it with the stream.
	receivedTime = 10 * time.Second

	// drainTime is how long what has arrived can still be read without a stream's context
	// ending, when the carrier has.
	drainTime = 3 * time.Second

	// lastOwn is the number of the last of the client's streams that is not a Stream: signals.
	lastOwn = 5

	// signalGrace is how long a bare end of a stream waits for the reset that
	// explains it.
	signalGrace = time.Second
)

const (
	// tlsSilence is how long TLS may take before a second connection is tried in small segments.
	// Hellos are larger than a segment, so that a path that silently loses large packets lets
	// TCP connect and then delivers nothing more.
	tlsSilence = 1500 * time.Millisecond

	// smallSegment is the largest TCP segment in bytes on paths that lose large packets: the size that
	// Linux's own search for the path's limit begins with (net.ipv4.tcp_base_mss).
	smallSegment = 1024
)

// On yamux the bytes of a stream travel in chunks, because yamux cannot tell a
// clean end from an abort or a dead connection:
//
//	chunk:  length varint (1, 2 or 4 bytes) · length bytes
//	end:    length 0: the sender wrote all it had
//
// An abort travels beside the stream, on the carrier's signal stream: behind
// unread bytes it would not reach a peer that has stopped reading.
// A yamux stream that ends without the chunk of length 0 was cut off.
const (
	maxChunk = 128 << 10 // the largest length in bytes

	// The content in bytes of the largest frame, and of that on a slow connection, which
	// a bundle may have to wait behind there. With yamux's head they are eight TLS records, and one.
	maxFrame  = carrier.Headroom + carrier.MaxWrite
	slowFrame = carrier.Headroom + carrier.SmallWrite
)

const (
	// coalesceBuffer bounds in bytes a write to TLS, of full records that leave in one system call,
	// and what waits for the next: a bundle goes behind both. It is this for streams that write so
	// much, and otherwise coalesceQuiet, so that little is on its way when the connection stalls.
	coalesceBuffer = 128 << 10
	coalesceQuiet  = 32 << 10

	// coalesceLarge is from how many bytes on the content of a frame does not wait but is written at once.
	coalesceLarge = coalesceQuiet - yamuxHead

	coalesceCalm = 16 // writes in a row without such a stream that say that there is none

	// On a slow connection it bounds what it takes this long to send, but not below
	// coalesceLeast bytes, so that a bundle waits for a time and not for a size.
	coalesceDelay = 5 * time.Millisecond
	coalesceLeast = 4 << 10

	tlsRecord = 16 << 10 // RFC 8446 section 5.1: the most bytes of one

	// closeBound is how long closing a carrier may take to send what is queued
	// and tell the peer, together.
	closeBound = 500 * time.Millisecond
)

// Bundles travel on the second yamux stream, back to back:
//
//	length varint (1..MaxBundleSize) · bundle (length bytes)
const (
	// bundleBuffer is the largest read buffer in bytes: several of the largest
	// bundles in one call. It starts at bundleBufferMin, which carriers that
	// bring no datagrams keep.
	bundleBuffer    = 64 << 10
	bundleBufferMin = 4 << 10
)
