package relay

import (
	"io"
	"sync"
	"sync/atomic"

	"wmproxy/tunnel"
)

// Sizes of the copy buffers in bytes: one chunk on the carrier, and one frame.
const (
	smallBuffer = tunnel.MaxChunk
	largeBuffer = tunnel.MaxWrite

	// maxLarge bounds the large buffers of the process: 64 MiB. A stream whose last read
	// was large keeps one while it waits for the next.
	maxLarge = 512
)

var largeHeld atomic.Int32

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

// A buffer is for the reads of one direction. The zero value is ready. It is large after a
// read of more than three quarters of the small one, if there are few enough, and small again after
// one of less: a stream of the carrier does not quite fill what it is given.
type buffer struct {
	b    []byte // of one of the pools, or nil
	busy bool
}

// read reads from r once. What it returns is valid until the next call.
func (b *buffer) read(r io.Reader) ([]byte, error) {
	large := len(b.b) == largeBuffer
	switch {
	case b.busy && !large && takeLarge():
		b.free()
		b.b = largeBuffers.Get().(*[largeBuffer]byte)[:]
	case b.b == nil || !b.busy && large:
		b.free()
		b.b = smallBuffers.Get().(*[smallBuffer]byte)[:]
	}
	n, err := r.Read(b.b)
	b.busy = n > smallBuffer*3/4
	return b.b[:n], err
}

// takeLarge says whether one more may be large, which then counts until free.
func takeLarge() bool {
	if largeHeld.Add(1) > maxLarge {
		largeHeld.Add(-1)
		return false
	}
	return true
}

func (b *buffer) free() {
	switch len(b.b) {
	case smallBuffer:
		smallBuffers.Put((*[smallBuffer]byte)(b.b))
	case largeBuffer:
		largeBuffers.Put((*[largeBuffer]byte)(b.b))
		largeHeld.Add(-1)
	}
	b.b = nil
}
