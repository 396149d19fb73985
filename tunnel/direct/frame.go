package direct

import (
	"encoding/binary"
	"errors"
)

// FrameType is the first byte of a frame.
type FrameType byte

// The frames of a direct packet. Those that RFC 9000 and RFC 9221 define have the numbers they have there.
const (
	FramePadding       FrameType = 0x00
	FramePathChallenge FrameType = 0x1a
	FramePathResponse  FrameType = 0x1b
	FrameFeedback      FrameType = 0x20
	FrameSizeProbe     FrameType = 0x21
	FrameSizeAck       FrameType = 0x22
	FrameDatagram      FrameType = 0x30
)

var errMalformedFrame = errors.New("direct packet has a malformed or unknown frame")

// Frame is one frame.
type Frame struct {
	Type     FrameType
	Data     [8]byte  // of a challenge or response
	Number   uint64   // of the packet with the size probe that is acknowledged
	Bundle   []byte   // of a datagram; aliases the packet
	Feedback Feedback // of feedback
}

// Feedback tells a sender about the packets that have opened. Times are in microseconds.
type Feedback struct {
	Sequence   uint64 // rises with each feedback
	Highest    uint64 // the highest number
	SendTime   uint32 // of the packet with that number
	Arrival    uint32 // of that packet, by the receiver's clock
	Hold       uint64 // from then until the feedback left
	Packets    uint64 // opened since the beginning
	Bytes      uint64 // in them, with their headers
	Duplicates uint64
	CE         uint64 // packets marked by ECN
	LeastDelay uint32 // arrival less send time since the previous feedback, modulo 2^32
	MeanDelay  uint64 // above the least
	Generation uint64 // the newest that has opened a packet
}

// Append appends the frame to b. Padding is one byte, which Pad extends. The bundle of a
// datagram may be left empty here and given to Seal as the body.
func (f *Frame) Append(b []byte) []byte {
	b = append(b, byte(f.Type))
	switch f.Type {
	case FramePathChallenge, FramePathResponse:
		return append(b, f.Data[:]...)
	case FrameSizeAck:
		return appendVarint(b, f.Number)
	case FrameDatagram:
		return append(b, f.Bundle...)
	case FrameFeedback:
		return f.Feedback.append(b)
	}
	return b
}

func (f *Feedback) append(b []byte) []byte {
	b = appendVarint(appendVarint(b, f.Sequence), f.Highest)
	b = binary.BigEndian.AppendUint32(b, f.SendTime)
	b = binary.BigEndian.AppendUint32(b, f.Arrival)
	for _, v := range [...]uint64{f.Hold, f.Packets, f.Bytes, f.Duplicates, f.CE} {
		b = appendVarint(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, f.LeastDelay)
	return appendVarint(appendVarint(b, f.MeanDelay), f.Generation)
}

// Pad appends padding to frames until they make a packet of size bytes.
func Pad(frames []byte, size int) []byte {
	for len(frames)+Overhead < size {
		frames = append(frames, byte(FramePadding))
	}
	return frames
}

// ParseFrame decodes the frame at the start of b and returns the frames behind it. After an error the rest of
// the packet is of no use.
func ParseFrame(b []byte) (f Frame, rest []byte, err error) {
	d := decoder{b: b}
	f.Type = FrameType(d.take(1)[0])
	switch f.Type {
	case FramePadding:
		d.b = nil
	case FramePathChallenge, FramePathResponse:
		f.Data = [8]byte(d.take(8))
	case FrameSizeProbe:
	case FrameSizeAck:
		f.Number = d.varint()
	case FrameDatagram:
		d.failed = d.failed || len(d.b) == 0
		f.Bundle, d.b = d.b, nil
	case FrameFeedback:
		v := &f.Feedback
		v.Sequence, v.Highest, v.SendTime, v.Arrival = d.varint(), d.varint(), d.uint32(), d.uint32()
		v.Hold, v.Packets, v.Bytes, v.Duplicates, v.CE = d.varint(), d.varint(), d.varint(), d.varint(), d.varint()
		v.LeastDelay, v.MeanDelay, v.Generation = d.uint32(), d.varint(), d.varint()
	default:
		d.failed = true
	}
	if d.failed {
		return Frame{}, nil, errMalformedFrame
	}
	return f, d.b, nil
}

// decoder reads fields from b. After a failure all are zero.
type decoder struct {
	b      []byte
	failed bool
}

var zeros [8]byte

// take returns the next n bytes, at most 8.
func (d *decoder) take(n int) []byte {
	if d.failed || len(d.b) < n {
		d.failed = true
		return zeros[:n]
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 { return binary.BigEndian.Uint32(d.take(4)) }

func (d *decoder) varint() uint64 {
	if d.failed || len(d.b) == 0 {
		d.failed = true
		return 0
	}
	length := 1 << (d.b[0] >> 6)
	var v [8]byte
	copy(v[8-length:], d.take(length))
	v[8-length] &= 0x3f
	return binary.BigEndian.Uint64(v[:])
}

// appendVarint appends v, or the largest varint if v is larger.
func appendVarint(b []byte, v uint64) []byte {
	switch {
	case v < 1<<6:
		return append(b, byte(v))
	case v < 1<<14:
		return binary.BigEndian.AppendUint16(b, 1<<14|uint16(v))
	case v < 1<<30:
		return binary.BigEndian.AppendUint32(b, 2<<30|uint32(v))
	}
	return binary.BigEndian.AppendUint64(b, 3<<62|min(v, maxNumber))
}
