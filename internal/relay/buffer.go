package relay

import (
	"io"
	"sync"
	"sync/atomic"

	"wmproxy/tunnel/carrier"
)

// Sizes of the copy buffers in bytes, without the headroom in front: one frame on a slow carrier, and
// one on a fast one.
const (
	smallBuffer = carrier.SmallWrite
	largeBuffer = carrier.MaxWrite

	// maxLarge bounds the large buffers of the process: 64 MiB. A stream whose last read
	// was large keeps one while it waits for the next.
	maxLarge = 512
)

type (
	smallArray [carrier.Headroom + smallBuffer]byte
	largeArray [carrier.Headroom + largeBuffer]byte
)

var largeHeld atomic.Int32

var (
	smallBuffers = sync.Pool{New: func() any { return new(smallArray) }}
	largeBuffers = sync.Pool{New: func() any { return new(largeArray) }}
)

// buffer is the read buffer of one direction. The zero value is ready to use. It switches to the
// large size after a read that filled more than ¾ of the small one, if there are few enough large
// ones, and back after a smaller read. Streams of a carrier do not fill a buffer completely.
type buffer struct {
	b    []byte // of one of the pools, or nil
	busy bool
}

// read reads from r once. The data is valid until the next call.
func (b *buffer) read(r io.Reader) ([]byte, error) {
	framed, err := b.readFramed(r)
	return framed[carrier.Headroom:], err
}

// readFramed is like read with carrier.Headroom bytes in front of the data.
func (b *buffer) readFramed(r io.Reader) ([]byte, error) {
	large := len(b.b) == len(largeArray{})
	switch {
	case b.busy && !large && takeLarge():
		b.free()
		b.b = largeBuffers.Get().(*largeArray)[:]
	case b.b == nil || !b.busy && large:
		b.free()
		b.b = smallBuffers.Get().(*smallArray)[:]
	}
	n, err := r.Read(b.b[carrier.Headroom:])
	b.busy = n > smallBuffer*3/4
	return b.b[:carrier.Headroom+n], err
}

// takeLarge reports whether one more buffer may be large, and counts it until free.
func takeLarge() bool {
	if largeHeld.Add(1) > maxLarge {
		largeHeld.Add(-1)
		return false
	}
	return true
}

func (b *buffer) free() {
	switch len(b.b) {
	case len(smallArray{}):
		smallBuffers.Put((*smallArray)(b.b))
	case len(largeArray{}):
		largeBuffers.Put((*largeArray)(b.b))
		largeHeld.Add(-1)
	}
	b.b = nil
}
