package tcp

import (
	"encoding/binary"
	"errors"
	"io"
)

// A yamux frame begins with
//
//	0         1      2           4                8                12
//	+---------+------+-----------+----------------+----------------+-------
//	| version | type | flags(16) | stream (32)    | length (32)    | content, of data
//	+---------+------+-----------+----------------+----------------+-------
const (
	yamuxHead     = 12
	yamuxTypeData = 0
	yamuxTypePing = 2
)

// errPing is a ping of yamux's own, which nobody of us sends. yamux answers each in a goroutine, that
// waits for as long as the peer does not read.
var errPing = errors.New("a yamux ping")

// frameFilter stands between TLS and yamux and takes from what arrives what yamux would hold for
// nobody. The zero value is ready, with arriving set.
type frameFilter struct {
	// arriving is told of each data frame and says whether yamux is to have its content.
	arriving func(stream, n uint32) (keep bool)

	head [yamuxHead]byte // the beginning of a head, which yamux gets when it is whole
	held int             // bytes of it
	left uint32          // bytes of content to come
	drop bool            // they are not for yamux
}

// read reads from r what yamux is to see. p has room for more than a head.
func (f *frameFilter) read(r io.Reader, p []byte) (int, error) {
	for {
		if len(p) <= f.held {
			return 0, io.ErrShortBuffer
		}
		n, err := r.Read(p[f.held:])
		n, broken := f.pass(p[:f.held+n])
		if broken != nil {
			return 0, broken
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// pass filters b, whose first f.held bytes are room for the head that is held, and returns how many
// bytes at the front of it yamux gets.
func (f *frameFilter) pass(b []byte) (n int, err error) {
	copy(b, f.head[:f.held])
	f.held = 0
	for in := 0; in < len(b); {
		if f.left > 0 {
			k := int(min(int64(f.left), int64(len(b)-in)))
			f.left -= uint32(k)
			if !f.drop {
				n += shift(b, n, in, k)
			}
			in += k
			continue
		}
		if len(b)-in < yamuxHead {
			f.held = copy(f.head[:], b[in:])
			break
		}
		head := b[in : in+yamuxHead]
		switch head[1] {
		case yamuxTypePing:
			return n, errPing
		case yamuxTypeData:
			f.left = binary.BigEndian.Uint32(head[8:])
			f.drop = f.left > 0 && !f.arriving(binary.BigEndian.Uint32(head[4:]), f.left)
			if f.drop {
				binary.BigEndian.PutUint32(head[8:], 0) // its flags count
			}
		}
		n += shift(b, n, in, yamuxHead)
		in += yamuxHead
	}
	return n, nil
}

// shift moves n bytes of b to an earlier place and returns n.
func shift(b []byte, to, from, n int) int {
	if to != from {
		copy(b[to:], b[from:from+n])
	}
	return n
}
