// Package direct is the codec of direct packets, which carry bundles beside a QUIC connection
// instead of in its DATAGRAM frames: the packets, their keys, their frames, and the table that
// tells them from QUIC's. It has no sockets, no clocks and no goroutines.
//
// # Packets
//
// On the wire a direct packet has the shape of a QUIC 1-RTT packet (RFC 9000 section 17.3.1):
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+
//	|0|1|S|R R|K|P P|
//	+-+-+-+-+-+-+-+-+-----------------------------------------------+
//	|                  Destination Connection ID (136)            ...
//	+---------------------------------------------------------------+
//	|                       Packet Number (32)                      |
//	+===============================================================+
//	|                        Send Time (32)                         |
//	+---------------------------------------------------------------+
//	|                          Frames (*)                         ...
//	+===============================================================+
//	|                     Authentication Tag (128)                ...
//	+---------------------------------------------------------------+
//
// The part between the double lines is encrypted. The five low bits of the first byte and the
// packet number are under header protection (RFC 9001 section 5.4), whose sample is the 16 bytes
// behind the packet number. S is 0 and ignored, R is 0, K is the key phase, and P is 3: the
// packet number always has four bytes. A receiver drops a packet with another R or P.
//
// A number has 62 bits, of which the low 32 are sent; RFC 9000 appendix A.3 restores the others
// from the highest number that was opened. Numbers begin at 0 in each direction, rise with each packet, and never restart,
// neither with a generation of keys nor with a connection ID. Send Time is the sender's clock in microseconds
// modulo 2^32, from any origin: only differences count.
//
// # Keys
//
// The AEAD and the hash are those of the TLS cipher suite. The secrets are derived by
// HKDF-Expand-Label (RFC 8446 section 7.1) with an empty context, from 32 bytes of the TLS exporter
// (RFC 8446 section 7.5) with ExporterLabel and an empty context:
//
//	secret 0 of the client's packets  = Expand-Label(exporter, "wmproxy client", hash length)
//	secret 0 of the server's packets  = Expand-Label(exporter, "wmproxy server", hash length)
//	secret n+1                        = Expand-Label(secret n, "wmproxy ku", hash length)
//	key, iv of generation n           = Expand-Label(secret n, "wmproxy key"; "wmproxy iv")
//	header protection key             = Expand-Label(secret 0, "wmproxy hp")
//
// The nonce is the iv with the 62-bit number in its low bits (exclusive or), and the associated data is the
// header (RFC 9001 section 5.3). Each direction has generations of its own. The lowest bit of the generation is the
// key phase. A sender begins the next generation after 2^20 packets of one, if the peer's FEEDBACK has
// named that one, and stops at 2^23, the limit of AES-GCM (RFC 9001 section 6.6). A receiver tries one
// generation: if the key phase is the current one's, the current; else the previous for a number below the
// first that the current has opened, and the next for others. It changes nothing before a packet has opened. It stops
// after 2^35 packets that did not open, half the limit of ChaCha20-Poly1305.
//
// A receiver drops and counts a packet if it has opened the number before, or if the number is older
// than those that it remembers, at least 4,096 (RFC 6479).
//
// # Frames
//
// What follows Send Time is frames, each a type u8 and its fields. varint is that of RFC 9000
// section 16, everything else is big-endian:
//
//	| type | name           | fields                                                       |
//	| ---- | -------------- | ------------------------------------------------------------ |
//	| 0x00 | PADDING        | the rest of the packet, ignored                              |
//	| 0x1a | PATH_CHALLENGE | data 8                                                       |
//	| 0x1b | PATH_RESPONSE  | data 8, of the challenge                                     |
//	| 0x20 | FEEDBACK       | below                                                        |
//	| 0x21 | SIZE_PROBE     | none                                                         |
//	| 0x22 | SIZE_ACK       | number varint, of the packet with the SIZE_PROBE             |
//	| 0x30 | DATAGRAM       | one bundle, at least one byte: the rest of the packet        |
//
//	FEEDBACK: sequence varint | highest varint | send time u32 | arrival u32 | hold varint
//	          packets varint | bytes varint | duplicates varint | CE varint
//	          least delay u32 | mean delay varint | generation varint
//
// An unknown or malformed frame ends the packet: what came before it counts, the rest is ignored.
// A PATH_CHALLENGE or a PATH_RESPONSE is padded to 1,200 bytes, and a SIZE_PROBE to the size that is probed.
//
// FEEDBACK tells a sender about the packets that have opened. Those with FEEDBACK alone elicit none. Sequence
// rises with each, so that a late one is noticed. Highest is the highest number, send time that
// packet's, arrival when it came by the receiver's clock, and hold how long ago that was when the FEEDBACK left. Packets and
// bytes (UDP payload) count all that opened since the beginning, duplicates what was dropped for its
// number, CE the packets with that ECN mark (RFC 3168). A delay is the arrival less the send time,
// modulo 2^32, of the packets since the previous FEEDBACK: the least, and by how much the mean is above it.
// Generation is the newest that opened a packet. All times are in microseconds.
package direct

import (
	"encoding/binary"
	"errors"
)

const (
	// Overhead is the size in bytes of a packet without its frames.
	Overhead = headerLen + sendTimeLen + tagLen

	numberOffset = 1 + IDLen
	numberLen    = 4
	headerLen    = numberOffset + numberLen
	sendTimeLen  = 4
	tagLen       = 16
	sampleLen    = 16

	maxNumber = 1<<62 - 1

	fixedBit     = 0x40
	longHeader   = 0x80
	keyPhase     = 0x04
	numberBits   = numberLen - 1
	reservedBits = 0x18
	protected    = 0x1f // the bits of the first byte under header protection
)

var (
	// ErrAuthentication means that a packet is not from the peer, or damaged.
	ErrAuthentication = errors.New("direct packet does not authenticate")

	// ErrDuplicate means that a packet's number was opened before, or is too old to tell.
	ErrDuplicate = errors.New("direct packet is a duplicate")

	// ErrKeyLimit means that the keys have been used as often as they may.
	ErrKeyLimit = errors.New("keys of direct packets are used up")
)

// protectHeader puts the header of a packet under header protection, or takes it out again.
func protectHeader(packet []byte, p headerProtector) {
	mask := p.mask((*[sampleLen]byte)(packet[headerLen:]))
	packet[0] ^= mask[0] & protected
	for i := range numberLen {
		packet[numberOffset+i] ^= mask[1+i]
	}
}

// decodeNumber returns the number nearest to the one after the highest whose low 32 bits are
// those in the packet (RFC 9000 appendix A.3). expected is the highest plus one.
func decodeNumber(packet []byte, expected uint64) uint64 {
	const window = 1 << (8 * numberLen)
	number := expected&^(window-1) | uint64(binary.BigEndian.Uint32(packet[numberOffset:]))
	switch {
	case number+window/2 <= expected && number+window <= maxNumber:
		return number + window
	case number > expected+window/2 && number >= window:
		return number - window
	}
	return number
}
