package relay

import (
	"io"
	"sync"

	"wmproxy/tunnel"
)

// Sizes of the copy buffers in bytes: what a quiet stream holds for each direction is
// one chunk on the carrier, and what a busy one holds is one frame.
const (
	smallBuffer = tunnel.MaxChunk
	largeBuffer = tunnel.MaxWrite
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

// A buffer is for the reads of one direction. The zero value is ready. It is large after a
// read of more than half of the small one, and small again after one of less: a stream of the
// carrier does not quite fill what it is given.
type buffer struct {
	b    []byte // of one of the pools, or nil
	busy bool
}

// read reads from r once. What it returns is valid until the next call.
func (b *buffer) read(r io.Reader) ([]byte, error) {
	switch large := len(b.b) == largeBuffer; {
	case b.busy && !large:
		b.free()
		b.b = largeBuffers.Get().(*[largeBuffer]byte)[:]
	case !b.busy && (large || b.b == nil):
		b.free()
		b.b = smallBuffers.Get().(*[smallBuffer]byte)[:]
	}
	n, err := r.Read(b.b)
	b.busy = n > smallBuffer/2
	return b.b[:n], err
}

func (b *buffer) free() {
	switch len(b.b) {
	case smallBuffer:
		smallBuffers.Put((*[smallBuffer]byte)(b.b))
	case largeBuffer:
		largeBuffers.Put((*[largeBuffer]byte)(b.b))
	}
	b.b = nil
}
