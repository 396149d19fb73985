package quic

import (
	"time"

	"wmproxy/tunnel/carrier"
)

const (
	// connectionIDLength is chosen so that a DATAGRAM frame of the largest
	// payload fills its packet exactly: quic-go reserves 20 bytes for the
	// connection ID when it computes that payload, the short header has
	// 1 + 17 + 2 and the frame type 1. Only full packets are sent with GSO.
	connectionIDLength = 17

	// A handshake that is silent for the idle timeout has failed, and so has one
	// of twice that age. A server waits less: each handshake holds memory. While many
	// are under way it waits less again, which is still several round trips.
	handshakeIdle        = carrier.HandshakeTimeout
	serverHandshakeIdle  = carrier.HandshakeTimeout / 2
	hurriedHandshakeIdle = carrier.HandshakeTimeout / 4

	keepAlive = 15 * time.Second // shorter than NAT mappings live

	// packetSize is how many bytes the packets of a new connection have, or one on a new path: the
	// least that QUIC needs (RFC 9000 section 14). quic-go's default of 1280 takes a path of 1308 over
	// IPv4 and never goes below, but for an interface of this host. Discovery raises it (RFC 8899).
	packetSize = 1200

	// maxStreams bounds the streams that the peer has open at once, the
	// control stream among them.
	maxStreams = 1024

	// firstWindow is the first window of a stream in bytes. It is small, because it
	// is what a peer can make us hold before it has authenticated: a second stream ends the
	// connection, before much can arrive on it. quic-go raises it as the application reads.
	firstWindow = 64 << 10

	// probeInterval is how often a sender asks for the path's limit, which
	// path MTU discovery raises (RFC 8899).
	probeInterval = 200 * time.Millisecond

	// packetCost is the bytes of a packet that are no payload: header, tag and an ACK frame.
	packetCost = 64
)

// What unread streams hold of the connection's window, others lack. Of streams that nobody reads,
// those that have stalled longest are reset.
const (
	maxStalled = 24 // stalled streams that a connection keeps

	// stalledAfter is how long a user has not come back for more. A relay comes back for each
	// 128 KiB, so that this is a target or application that takes less than 5 KB/s.
	stalledAfter = 30 * time.Second

	// stalledBytes is how much a stream must have brought before: one that has brought less has a small window.
	stalledBytes = 64 << 10
)
