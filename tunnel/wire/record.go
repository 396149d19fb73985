package wire

import (
	"encoding/binary"
	"errors"

	"github.com/quic-go/quic-go/quicvarint"
)

var errMalformedBundle = errors.New("tunnel: malformed bundle")

// Record is a datagram, a fragment of one, padding or a probe.
type Record struct {
	Flow     uint64
	Body     []byte // aliases the bundle
	Fragment bool
	message  uint16
	index    uint8
	count    uint8 // 0 in all fragments but the last
}

// Padding says that nothing but padding follows in the bundle.
func (r *Record) Padding() bool { return r.Flow == 0 && len(r.Body) == 0 }

// ParseRecord decodes the record at the start of b and returns what follows it.
func ParseRecord(b []byte) (r Record, rest []byte, err error) {
	flow, n, err := quicvarint.Parse(b)
	if err != nil {
		return r, nil, errMalformedBundle
	}
	b = b[n:]
	if flow == 0 && len(b) == 0 {
		return r, nil, nil // padding of one byte
	}
	v, n, err := quicvarint.Parse(b)
	if err != nil {
		return r, nil, errMalformedBundle
	}
	b = b[n:]
	r.Flow = flow
	if v&1 == 1 {
		if len(b) < fragmentHeaderLen {
			return r, nil, errMalformedBundle
		}
		r.Fragment = true
		r.message = binary.BigEndian.Uint16(b)
		r.index, r.count = b[2], b[3]
		if r.index >= maxFragments || r.count != 0 && r.count != r.index+1 {
			return r, nil, errMalformedBundle
		}
		b = b[fragmentHeaderLen:]
	}
	length := v >> 1
	if length > uint64(len(b)) {
		return r, nil, errMalformedBundle
	}
	r.Body = b[:length:length]
	return r, b[length:], nil
}

// RecordLen is the size in bytes of a whole datagram's record.
func RecordLen(flow uint64, body int) int {
	return quicvarint.Len(flow) + quicvarint.Len(uint64(body)<<1) + body
}

// FragmentOverhead is the size in bytes of a fragment's header if the whole
// record takes at most room bytes.
func FragmentOverhead(flow uint64, room int) int {
	return quicvarint.Len(flow) + quicvarint.Len(uint64(max(room, 0))<<1|1) + fragmentHeaderLen
}

// AppendRecordHeader appends the header of a whole datagram of length bytes.
func AppendRecordHeader(b []byte, flow uint64, length int) []byte {
	return quicvarint.Append(quicvarint.Append(b, flow), uint64(length)<<1)
}

// AppendFragmentHeader appends the header of a fragment of length bytes.
func AppendFragmentHeader(b []byte, flow uint64, length int, message uint16, index, count uint8) []byte {
	b = quicvarint.Append(quicvarint.Append(b, flow), uint64(length)<<1|1)
	b = binary.BigEndian.AppendUint16(b, message)
	return append(b, index, count)
}
