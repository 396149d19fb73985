package tcp

import (
	"errors"
	"io"

	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/tunnel/carrier"
)

var (
	errChunkTooLong = errors.New("a chunk's length is out of bounds")
	errCutOff       = errors.New("the stream was cut off without an end")
)

// appendChunkHeader appends the header of a chunk of n bytes, n <= maxChunk.
func appendChunkHeader(b []byte, n int) []byte { return quicvarint.Append(b, uint64(n)) }

// parseChunkHeader reads a header. size is 0 where b does not hold all of it.
func parseChunkHeader(b []byte) (n, size int, err error) {
	if len(b) == 0 {
		return 0, 0, nil
	}
	if b[0]>>6 == 3 { // 8 bytes
		return 0, 0, errChunkTooLong
	}
	length, size, err := quicvarint.Parse(b)
	if err != nil {
		return 0, 0, nil
	}
	if length > maxChunk {
		return 0, 0, errChunkTooLong
	}
	return int(length), size, nil
}

// A chunkParser takes the headers out of what arrives.
type chunkParser struct {
	left    int                    // bytes of the current chunk that are still to come
	header  [carrier.Headroom]byte // the beginning of a header that was cut
	nheader int
}

// room returns how much of p to fill with what arrives next: where the rest of a chunk is long
// no more than that, and in front of a chunk no more than its header, so that strip finds long chunks
// where they are to be. Short ones it has to move, as many of them as have arrived.
func (c *chunkParser) room(p []byte) []byte {
	switch {
	case len(p) < carrier.SmallWrite:
		return p
	case c.left > carrier.SmallWrite/2:
		return p[:min(len(p), c.left)]
	case c.left > 0:
		return p
	case c.nheader == 0:
		return p[:1]
	}
	return p[:1<<(c.header[0]>>6)-c.nheader]
}

// strip moves the content of the chunks in b, which continue those of the call before,
// to its front and returns how many bytes that is. The error is io.EOF at the chunk of length 0,
// behind which nothing counts, or errChunkTooLong.
func (c *chunkParser) strip(b []byte) (n int, err error) {
	for in := b; len(in) > 0; {
		if c.left > 0 {
			k := copy(b[n:], in[:min(c.left, len(in))])
			n, in, c.left = n+k, in[k:], c.left-k
			continue
		}
		c.header[c.nheader] = in[0]
		c.nheader++
		in = in[1:]
		size, whole, err := parseChunkHeader(c.header[:c.nheader])
		if err != nil {
			c.nheader = 0 // whoever asks again gets an answer
			return n, err
		}
		if whole == 0 {
			continue
		}
		c.left, c.nheader = size, 0
		if size == 0 {
			return n, io.EOF
		}
	}
	return n, nil
}
