package tcp

import (
	"errors"
	"io"

	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/tunnel/carrier"
)

var errBundleLength = errors.New("a bundle's length is out of bounds")

// parseBundle returns the first bundle of b and its size with the header, which
// is 0 where b does not hold all of it.
func parseBundle(b []byte) (bundle []byte, size int, err error) {
	length, n, err := quicvarint.Parse(b)
	if err != nil {
		return nil, 0, nil
	}
	if length == 0 || length > carrier.MaxBundleSize {
		return nil, 0, errBundleLength
	}
	size = n + int(length)
	if len(b) < size {
		return nil, 0, nil
	}
	return b[n:size:size], size, nil
}

// bundleReader cuts a byte stream into bundles.
type bundleReader struct {
	buf  []byte
	r, w int // buf[r:w] is read and not yet returned
}

// next puts what is there into dst and reads only where that is nothing. The
// bundles are valid until the next call. Errors other than errBundleLength are src's.
func (br *bundleReader) next(src io.Reader, dst [][]byte) (int, error) {
	if len(dst) == 0 {
		return 0, nil
	}
	for {
		n := 0
		for n < len(dst) {
			bundle, size, err := parseBundle(br.buf[br.r:br.w])
			if err != nil {
				return n, err
			}
			if size == 0 {
				break
			}
			dst[n] = bundle
			n++
			br.r += size
		}
		if n > 0 {
			return n, nil
		}
		br.makeRoom()
		m, err := src.Read(br.buf[br.w:])
		br.w += m
		if m == 0 && err != nil {
			return 0, err
		}
	}
}

// makeRoom moves the rest to the front and grows a buffer that was filled.
func (br *bundleReader) makeRoom() {
	rest := br.buf[br.r:br.w]
	if br.w == len(br.buf) && len(br.buf) < bundleBuffer {
		br.buf = make([]byte, min(max(bundleBufferMin, 2*len(br.buf)), bundleBuffer))
	}
	br.r, br.w = 0, copy(br.buf, rest)
}
