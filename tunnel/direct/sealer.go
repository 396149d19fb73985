package direct

import (
	"encoding/binary"
	"slices"
)

// Sealer makes the packets of one direction. One goroutine at a time uses it.
type Sealer struct {
	peer       ConnectionID
	keys       *keys
	hp         headerProtector
	number     uint64 // of the next packet
	sealed     uint64 // packets of this generation
	generation uint64
	confirmed  bool // the peer has opened a packet of this generation
}

// SetPeer sets the connection ID of the packets to come. Keys and numbers go on.
func (s *Sealer) SetPeer(id ConnectionID) { s.peer = id }

// Confirm notes that the peer's feedback named the generation. Without it no further one begins.
func (s *Sealer) Confirm(generation uint64) {
	if generation == s.generation {
		s.confirmed = true
	}
}

// Seal appends one packet to dst and returns the result and the packet's number. Its frames are
// head and body together; body is not copied if it lies in dst's array already where it
// belongs, Overhead-16+len(head) bytes behind the end of dst. Neither may overlap the packet in
// another way. sendTime is the sender's clock in microseconds. Seal allocates nothing if dst has room for
// Overhead bytes and the frames, except when a new generation begins. Its only error is ErrKeyLimit.
func (s *Sealer) Seal(dst []byte, sendTime uint32, head, body []byte) (packet []byte, number uint64, err error) {
	if err := s.prepare(); err != nil {
		return dst, 0, err
	}
	start := len(dst)
	dst = slices.Grow(dst, Overhead+len(head)+len(body))
	first := byte(fixedBit | numberBits)
	if s.generation&1 != 0 {
		first |= keyPhase
	}
	dst = append(dst, first)
	dst = append(dst, s.peer[:]...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(s.number))
	dst = binary.BigEndian.AppendUint32(dst, sendTime)
	dst = append(dst, head...)
	dst = append(dst, body...)
	header, plain := dst[start:start+headerLen], dst[start+headerLen:]
	sealed := s.keys.aead.Seal(plain[:0], s.keys.nonceOf(s.number), plain, header)
	dst = dst[:start+headerLen+len(sealed)]
	protectHeader(dst[start:], s.hp)
	number = s.number
	s.number++
	s.sealed++
	return dst, number, nil
}

// prepare begins a new generation when it is time.
func (s *Sealer) prepare() error {
	if s.sealed >= updateAfter && s.confirmed {
		next, err := s.keys.update()
		if err != nil {
			return err
		}
		s.keys, s.sealed, s.confirmed = next, 0, false
		s.generation++
	}
	if s.sealed >= maxSealed || s.number > maxNumber {
		return ErrKeyLimit
	}
	return nil
}
