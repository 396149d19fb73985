package direct

import "encoding/binary"

// Opener opens the packets of one direction. One goroutine at a time uses it.
type Opener struct {
	previous, current, next *keys // previous is nil in generation 0
	hp                      headerProtector
	generation              uint64 // of current
	first                   uint64 // the number that current has opened first: the previous has none above
	window                  window
	counts                  Counts
}

// Counts are the packets that an Opener was given.
type Counts struct {
	Packets, Bytes uint64 // opened, with their headers
	Duplicates     uint64 // authentic, but opened before or too old to tell
	Failed         uint64 // not authentic
}

// Packet is an opened packet.
type Packet struct {
	Number   uint64
	SendTime uint32 // the peer's clock in microseconds
	Frames   []byte // aliases the packet
}

// Counts returns the counts so far.
func (o *Opener) Counts() Counts { return o.counts }

// Generation returns the newest generation that has opened a packet, for the feedback.
func (o *Opener) Generation() uint64 { return o.generation }

// Open opens a packet in place. A packet that does not open changes nothing but a count, and packet's bytes are
// then undefined. The errors are ErrAuthentication, ErrDuplicate and ErrKeyLimit.
func (o *Opener) Open(packet []byte) (Packet, error) {
	if o.counts.Failed >= maxFailed {
		return Packet{}, ErrKeyLimit
	}
	if len(packet) <= Overhead {
		return o.fail()
	}
	protectHeader(packet, o.hp)
	number := decodeNumber(packet, o.window.end)
	header, sealed := packet[:headerLen], packet[headerLen:]
	keys := o.keysFor(number, packet[0])
	plain, err := keys.aead.Open(sealed[:0], keys.nonceOf(number), sealed, header)
	// The header's other bits count only now, so that nobody learns about them from our time (RFC 9001 section 9.5).
	if err != nil || packet[0]&(reservedBits|numberBits) != numberBits {
		return o.fail()
	}
	if o.window.has(number) {
		o.counts.Duplicates++
		return Packet{}, ErrDuplicate
	}
	if err := o.follow(keys, number); err != nil {
		return Packet{}, err
	}
	o.window.add(number)
	o.counts.Packets++
	o.counts.Bytes += uint64(len(packet))
	return Packet{Number: number, SendTime: binary.BigEndian.Uint32(plain), Frames: plain[sendTimeLen:]}, nil
}

func (o *Opener) fail() (Packet, error) {
	o.counts.Failed++
	return Packet{}, ErrAuthentication
}

// keysFor returns the keys to try (RFC 9001 sections 6.3 and 6.5).
func (o *Opener) keysFor(number uint64, firstByte byte) *keys {
	switch {
	case firstByte&keyPhase != 0 == (o.generation&1 != 0):
		return o.current
	case o.previous != nil && number < o.first:
		return o.previous
	}
	return o.next
}

// follow notes that keys have opened a new packet: the next become the current.
func (o *Opener) follow(keys *keys, number uint64) error {
	if keys != o.next {
		return nil
	}
	next, err := keys.update()
	if err != nil {
		return err
	}
	o.previous, o.current, o.next = o.current, keys, next
	o.generation++
	o.first = number
	return nil
}
