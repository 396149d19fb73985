package bench

import (
	"encoding/binary"
	"math/rand/v2"

	"wmproxy/internal/udpio"
	"wmproxy/socks"
)

// The payload of a datagram, big-endian:
//
//	+-----+-------------+------+----------+------------+---------------+
//	| run | association | slot | sequence | sent at    | pseudo-random |
//	+-----+-------------+------+----------+------------+---------------+
//	|  4  |      2      |  2   |    8     | 8 (ns)     |      0…       |
//	+-----+-------------+------+----------+------------+---------------+
//
// run distinguishes the datagrams of this run from late ones of another; slot is the place
// in the window; sent at is the time since the start of the run.
const (
	offRun      = 0
	offIndex    = 4
	offSlot     = 6
	offSequence = 8
	offSent     = 16

	// MinSize is the smallest datagram of a load, in bytes.
	MinSize = 24
)

// MaxSize is the largest datagram of a load, in bytes: an IPv4 association carries it to
// an IPv4 target.
const MaxSize = udpio.MaxDatagram - 10

type stamp struct {
	run      uint32
	index    uint16
	slot     uint16
	sequence uint64
	sent     int64 // ns
}

// put writes s to the first MinSize bytes of b.
func (s *stamp) put(b []byte) {
	_ = b[MinSize-1]
	binary.BigEndian.PutUint32(b[offRun:], s.run)
	binary.BigEndian.PutUint16(b[offIndex:], s.index)
	binary.BigEndian.PutUint16(b[offSlot:], s.slot)
	binary.BigEndian.PutUint64(b[offSequence:], s.sequence)
	binary.BigEndian.PutUint64(b[offSent:], uint64(s.sent))
}

// readStamp returns the stamp in b. ok is false if b has less than MinSize bytes.
func readStamp(b []byte) (s stamp, ok bool) {
	if len(b) < MinSize {
		return s, false
	}
	return stamp{
		run:      binary.BigEndian.Uint32(b[offRun:]),
		index:    binary.BigEndian.Uint16(b[offIndex:]),
		slot:     binary.BigEndian.Uint16(b[offSlot:]),
		sequence: binary.BigEndian.Uint64(b[offSequence:]),
		sent:     int64(binary.BigEndian.Uint64(b[offSent:])),
	}, true
}

// filler returns the pseudo-random rest of a datagram, which cannot be compressed and is
// the same in each run.
func filler(size int) []byte {
	b := make([]byte, size-MinSize)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// udpHeaderLen is the length of RSV and FRAG, before the address (RFC 1928 section 7).
const udpHeaderLen = 3

// udpHeader returns the header of a datagram to dst.
func udpHeader(dst socks.Addr) []byte {
	return socks.AppendAddr(make([]byte, udpHeaderLen, udpHeaderLen+socks.MaxAddrLen), dst)
}

// payloadOf returns the payload of a datagram from a SOCKS5 server, or nil if it is
// malformed or a fragment.
func payloadOf(b []byte) []byte {
	if len(b) < udpHeaderLen || b[2] != 0 {
		return nil
	}
	n, err := socks.AddrLen(b[udpHeaderLen:])
	if err != nil {
		return nil
	}
	return b[udpHeaderLen+n:]
}
