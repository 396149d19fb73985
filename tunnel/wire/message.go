// Package wire is the layout of the protocol's bytes: messages, HELLO and WELCOME, records and
// fragments, probes, and the headers of streams. It has no clock, no lock and no connection.
package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/quic-go/quic-go/quicvarint"
)

// The handshake and the control stream are made of messages:
//
//	+-------------+---------------+---------+
//	| type varint | length varint | payload |
//	+-------------+---------------+---------+
//
// A receiver skips a type that it does not know when it is even, and ends the
// carrier when it is odd. What follows the known fields of a payload is skipped.
type MessageType uint64

const (
	MsgEnd     MessageType = 1  // sequence of the first, then (flow, code) for each
	MsgPing    MessageType = 2  // id: is the control stream read?
	MsgEndAck  MessageType = 3  // sequence of the last end received
	MsgPong    MessageType = 4  // id of the ping, bundles received, preference heard
	MsgPrefer  MessageType = 5  // epoch, attach number for datagrams, for streams
	MsgDrain   MessageType = 6  // how long the sender will still be there, in ms
	MsgGoAway  MessageType = 7  // code, sentence
	MsgHello   MessageType = 65 // see hello
	MsgWelcome MessageType = 67 // see welcome
	MsgRefuse  MessageType = 69 // code, sentence
	MsgRenew   MessageType = 71 // no such session: send Hello again with a new one
)

var (
	ErrMessageTooLong  = errors.New("tunnel: control message too long")
	errMessageTooShort = errors.New("tunnel: control message cut short")
)

// AppendMessage appends a message.
func AppendMessage(b []byte, t MessageType, payload []byte) []byte {
	b = quicvarint.Append(b, uint64(t))
	b = quicvarint.Append(b, uint64(len(payload)))
	return append(b, payload...)
}

// ReadMessage reads one message into buf, growing it up to maxMessage, and
// returns its type and payload, which is valid until buf is used again.
func ReadMessage(r *bufio.Reader, buf []byte) (MessageType, []byte, error) {
	t, err := quicvarint.Read(r)
	if err != nil {
		return 0, nil, err
	}
	n, err := quicvarint.Read(r)
	if err != nil {
		return 0, nil, noEOF(err)
	}
	if n > maxMessage {
		return 0, nil, ErrMessageTooLong
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return 0, nil, noEOF(err)
	}
	return MessageType(t), buf, nil
}

// noEOF turns the end of the stream inside a message into an error.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Fields reads a payload field by field; the first failure sticks in err.
type Fields struct {
	B   []byte
	Err error
}

// Varint reads a varint.
func (f *Fields) Varint() uint64 {
	v, n, err := quicvarint.Parse(f.B)
	if err != nil {
		f.fail()
		return 0
	}
	f.B = f.B[n:]
	return v
}

func (f *Fields) bytes(n int) []byte {
	if len(f.B) < n {
		f.fail()
		return make([]byte, n)
	}
	v := f.B[:n]
	f.B = f.B[n:]
	return v
}

// text reads a varint length of at most limit, and as many bytes.
func (f *Fields) text(limit int) string {
	n := f.Varint()
	if n > uint64(limit) {
		f.fail()
		return ""
	}
	return string(f.bytes(int(n)))
}

func (f *Fields) fail() {
	f.B = nil
	if f.Err == nil {
		f.Err = errMessageTooShort
	}
}

func appendText(b []byte, s string) []byte {
	return append(quicvarint.Append(b, uint64(len(s))), s...)
}

// AppendSentence appends a code and a reason, of which it cuts what is beyond maxSentence.
func AppendSentence(b []byte, code uint64, reason string) []byte {
	return appendText(quicvarint.Append(b, code), reason[:min(len(reason), maxSentence)])
}

// ParseSentence parses the payload of a refusal or a go-away.
func ParseSentence(payload []byte) (code uint64, reason string, err error) {
	f := Fields{B: payload}
	code, reason = f.Varint(), f.text(maxSentence)
	if f.Err != nil {
		return 0, "", fmt.Errorf("reading a refusal: %w", f.Err)
	}
	return code, reason, nil
}
