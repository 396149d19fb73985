package tcp

import (
	"errors"

	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/tunnel/carrier"
)

// Signals travel on the third yamux stream, back to back, and say what yamux has
// no words for:
//
//	close:  0 · code varint · length varint · reason (length bytes)
//	reset:  1 · yamux stream id varint · code varint
//
// close ends the carrier, reset abandons both halves of one stream.
const (
	signalClose = 0
	signalReset = 1

	// maxSignal bounds a signal in bytes. A peer may write any varint in eight.
	maxSignal = 1 + 8 + 8 + carrier.MaxReason
)

var errSignal = errors.New("malformed signal")

type signal struct {
	kind   byte
	code   carrier.ErrorCode
	stream uint32 // of a reset
	reason string // of a close, at most MaxReason bytes
}

func appendSignal(b []byte, s signal) []byte {
	b = append(b, s.kind)
	if s.kind == signalReset {
		b = quicvarint.Append(b, uint64(s.stream))
		return quicvarint.Append(b, uint64(s.code))
	}
	b = quicvarint.Append(b, uint64(s.code))
	b = quicvarint.Append(b, uint64(len(s.reason)))
	return append(b, s.reason...)
}

// parseSignal reads one signal from the front of b. size is 0 where b does not
// hold all of it.
func parseSignal(b []byte) (s signal, size int, err error) {
	if len(b) == 0 {
		return signal{}, 0, nil
	}
	s.kind = b[0]
	if s.kind > signalReset {
		return signal{}, 0, errSignal
	}
	first, n, err := quicvarint.Parse(b[1:])
	if err != nil {
		return signal{}, 0, nil
	}
	size = 1 + n
	second, n, err := quicvarint.Parse(b[size:])
	if err != nil {
		return signal{}, 0, nil
	}
	size += n
	if s.kind == signalReset {
		if first > 1<<32-1 {
			return signal{}, 0, errSignal
		}
		s.stream, s.code = uint32(first), carrier.ErrorCode(second)
		return s, size, nil
	}
	if second > carrier.MaxReason {
		return signal{}, 0, errSignal
	}
	if len(b)-size < int(second) {
		return signal{}, 0, nil
	}
	s.code, s.reason = carrier.ErrorCode(first), string(b[size:size+int(second)])
	return s, size + int(second), nil
}
