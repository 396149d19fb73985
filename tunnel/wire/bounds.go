package wire

import (
	"time"

	"wmproxy/internal/udpio"
)

const (
	// maxPartials bounds the datagrams that one carrier has in parts; with
	// MaxBody it bounds their memory to about 4 MiB.
	maxPartials = 64

	// reassemblyTimeout is how long a datagram may stay in parts.
	reassemblyTimeout = time.Second

	// smallPartial is the buffer a datagram in parts starts with, in bytes. Most
	// are only a little larger than the path's limit.
	smallPartial = 4 << 10
)

// maxUser and maxToken bound the credentials in bytes; SecretLen is the length of a session's secret.
const (
	maxUser   = 64
	maxToken  = 256
	SecretLen = 32
)

const (
	// maxMessage bounds a message's payload in bytes.
	maxMessage = 4 << 10

	// maxSentence bounds the sentence in a refusal or a go-away in bytes.
	maxSentence = 256
)

// A bundle is records back to back. A record is one datagram or a fragment of one:
//
//	+-------------+----------------------+-----------------------------+------+
//	| flow varint | length<<1|F varint   | message u16, index u8,      | body |
//	|             | (length of the body) | count u8: only where F is 1 |      |
//	+-------------+----------------------+-----------------------------+------+
//
// Flow 0 with length 0, or with nothing after it, is padding up to the end of the
// bundle; flow 0 with a length is control in band, and what is unknown there is skipped. Fragments of
// one datagram share flow and message; index rises from 0, and count is 0 in all
// but the last, where it is index+1: a sender need not know beforehand how the
// datagram will fall into bundles.
const (
	fragmentHeaderLen = 4

	// MaxBody is the largest datagram in bytes: the longest address as SOCKS5
	// writes it, and the largest UDP payload.
	MaxBody = 259 + udpio.MaxDatagram

	// maxFragments bounds the fragments of one datagram.
	maxFragments = 128

	// MinFragment is the smallest body in bytes of a fragment that is neither the
	// first nor the last, so that the largest datagram stays below maxFragments.
	MinFragment = 600
)

// MaxStreamAddr bounds the address in a stream's header in bytes.
const MaxStreamAddr = 1 + 1 + 255 + 2
