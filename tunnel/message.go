package tunnel

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
type messageType uint64

const (
	msgEnd     messageType = 1  // sequence of the first, then (flow, code) for each
	msgPing    messageType = 2  // id: is the control stream read?
	msgEndAck  messageType = 3  // sequence of the last end received
	msgPong    messageType = 4  // id of the ping, bundles received, preference heard
	msgPrefer  messageType = 5  // epoch, attach number for datagrams, for streams
	msgDrain   messageType = 6  // how long the sender will still be there, in ms
	msgGoAway  messageType = 7  // code, sentence
	msgHello   messageType = 65 // see hello
	msgWelcome messageType = 67 // see welcome
	msgRefuse  messageType = 69 // code, sentence
	msgRenew   messageType = 71 // no such session: send Hello again with a new one
)

const (
	// maxMessage bounds a message's payload in bytes.
	maxMessage = 4 << 10

	// maxSentence bounds the sentence in a refusal or a go-away in bytes.
	maxSentence = 256
)

var (
	errMessageTooLong  = errors.New("tunnel: control message too long")
	errMessageTooShort = errors.New("tunnel: control message cut short")
)

func appendMessage(b []byte, t messageType, payload []byte) []byte {
	b = quicvarint.Append(b, uint64(t))
	b = quicvarint.Append(b, uint64(len(payload)))
	return append(b, payload...)
}

// readMessage reads one message into buf, growing it up to maxMessage, and
// returns its type and payload, which is valid until buf is used again.
func readMessage(r *bufio.Reader, buf []byte) (messageType, []byte, error) {
	t, err := quicvarint.Read(r)
	if err != nil {
		return 0, nil, err
	}
	n, err := quicvarint.Read(r)
	if err != nil {
		return 0, nil, noEOF(err)
	}
	if n > maxMessage {
		return 0, nil, errMessageTooLong
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return 0, nil, noEOF(err)
	}
	return messageType(t), buf, nil
}

// noEOF turns the end of the stream inside a message into an error.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// fields reads a payload field by field; the first failure sticks in err.
type fields struct {
	b   []byte
	err error
}

func (f *fields) varint() uint64 {
	v, n, err := quicvarint.Parse(f.b)
	if err != nil {
		f.fail()
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) bytes(n int) []byte {
	if len(f.b) < n {
		f.fail()
		return make([]byte, n)
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

// text reads a varint length of at most limit, and as many bytes.
func (f *fields) text(limit int) string {
	n := f.varint()
	if n > uint64(limit) {
		f.fail()
		return ""
	}
	return string(f.bytes(int(n)))
}

func (f *fields) fail() {
	f.b = nil
	if f.err == nil {
		f.err = errMessageTooShort
	}
}

func appendText(b []byte, s string) []byte {
	return append(quicvarint.Append(b, uint64(len(s))), s...)
}

func appendSentence(b []byte, code ErrorCode, reason string) []byte {
	if len(reason) > maxSentence {
		reason = reason[:maxSentence]
	}
	return appendText(quicvarint.Append(b, uint64(code)), reason)
}

func parseSentence(payload []byte) (*CloseError, error) {
	f := fields{b: payload}
	e := &CloseError{Code: ErrorCode(f.varint()), Reason: f.text(maxSentence)}
	if f.err != nil {
		return nil, fmt.Errorf("reading a refusal: %w", f.err)
	}
	return e, nil
}
