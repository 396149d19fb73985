package wire

import (
	"bufio"
	"fmt"
	"io"

	"github.com/quic-go/quic-go/quicvarint"
)

// A stream begins with the opener's header and the other side's answer:
//
//	opener:  | kind u8 | length varint | address: ATYP, address, port |
//	answer:  | SOCKS5 reply code u8 | length varint | bound address |
//
// then bytes both ways.
const StreamConnect = 1 // the kind of a TCP connection to the address

// AppendStreamHeader appends a header, or an answer.
func AppendStreamHeader(b []byte, first byte, addr []byte) []byte {
	return append(quicvarint.Append(append(b, first), uint64(len(addr))), addr...)
}

// ReadStreamHeader reads a byte and a length-prefixed address, and nothing beyond.
func ReadStreamHeader(r io.Reader) (first byte, addr []byte, err error) {
	one := Unbuffered(r)
	if first, err = one.ReadByte(); err != nil {
		return 0, nil, noEOF(err)
	}
	n, err := quicvarint.Read(one)
	if err != nil {
		return 0, nil, noEOF(err)
	}
	if n > MaxStreamAddr {
		return 0, nil, fmt.Errorf("tunnel: address of %d bytes", n)
	}
	addr = make([]byte, n)
	if _, err := io.ReadFull(r, addr); err != nil {
		return 0, nil, noEOF(err)
	}
	return first, addr, nil
}

// Unbuffered returns a reader that takes no more from r than it is asked for: the bytes after a
// header or a message are others' to read.
func Unbuffered(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(oneByte{r}, 16) }

type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }
