package wire

import (
	"fmt"
	"time"

	"github.com/quic-go/quic-go/quicvarint"
)

// Versions of the protocol that this program speaks.
const (
	MinVersion = 2
	MaxVersion = 2
)

// Hello is the client's first message:
//
//	min version varint · max version varint
//	user length varint · user · token length varint · token
//	session id 16 · attach number varint
//	proof 32 · has secret u8 · [secret 32] · features varint
//
// The secret travels until the server has confirmed the session, so that a lost
// Welcome costs nothing; from then on only the proof does:
//
//	HMAC-SHA256(secret, "wmproxy attach" · kind u8 · attach number u64 · session id · exporter 32)
//
// The exporter (RFC 8446 section 7.5) ties it to this one connection.
type Hello struct {
	MinVersion, MaxVersion uint64
	User, Token            string
	Session                [16]byte
	Attach                 uint64
	Proof                  [32]byte
	Secret                 []byte // nil or SecretLen bytes
	Features               Features
}

// Known reports whether we speak one of the client's versions.
func (h *Hello) Known() bool { return h.MinVersion <= MaxVersion && h.MaxVersion >= MinVersion }

// Append appends the payload to b.
func (h *Hello) Append(b []byte) []byte {
	b = quicvarint.Append(quicvarint.Append(b, h.MinVersion), h.MaxVersion)
	b = appendText(appendText(b, h.User), h.Token)
	b = quicvarint.Append(append(b, h.Session[:]...), h.Attach)
	b = append(b, h.Proof[:]...)
	if h.Secret == nil {
		b = append(b, 0)
	} else {
		b = append(append(b, 1), h.Secret...)
	}
	return quicvarint.Append(b, uint64(h.Features))
}

// ParseHello parses a payload. Of a client whose versions we do not speak it returns these alone.
func ParseHello(payload []byte) (*Hello, error) {
	f := Fields{B: payload}
	h := &Hello{MinVersion: f.Varint(), MaxVersion: f.Varint()}
	if f.Err == nil && !h.Known() {
		return h, nil // the rest may be laid out otherwise
	}
	h.User, h.Token = f.text(maxUser), f.text(maxToken)
	copy(h.Session[:], f.bytes(len(h.Session)))
	h.Attach = f.Varint()
	copy(h.Proof[:], f.bytes(len(h.Proof)))
	if f.bytes(1)[0] == 1 {
		h.Secret = append([]byte(nil), f.bytes(SecretLen)...)
	}
	h.Features = f.features()
	if f.Err != nil {
		return nil, fmt.Errorf("reading Hello: %w", f.Err)
	}
	return h, nil
}

// Welcome is the server's answer:
//
//	version varint · instance 16 · resumed u8 · most flows varint · most streams varint · hold varint, ms
//	features varint
type Welcome struct {
	Version    uint64
	Instance   [16]byte
	Resumed    bool
	MaxFlows   uint64
	MaxStreams uint64
	Hold       time.Duration
	Features   Features
}

// Known reports whether we speak the version.
func (w *Welcome) Known() bool { return w.Version >= MinVersion && w.Version <= MaxVersion }

// Append appends the payload to b.
func (w *Welcome) Append(b []byte) []byte {
	b = append(quicvarint.Append(b, w.Version), w.Instance[:]...)
	resumed := byte(0)
	if w.Resumed {
		resumed = 1
	}
	b = quicvarint.Append(append(b, resumed), w.MaxFlows)
	b = quicvarint.Append(b, w.MaxStreams)
	b = quicvarint.Append(b, uint64(w.Hold.Milliseconds()))
	return quicvarint.Append(b, uint64(w.Features))
}

// ParseWelcome parses a payload.
func ParseWelcome(payload []byte) (*Welcome, error) {
	f := Fields{B: payload}
	w := &Welcome{Version: f.Varint()}
	copy(w.Instance[:], f.bytes(len(w.Instance)))
	w.Resumed = f.bytes(1)[0] == 1
	w.MaxFlows, w.MaxStreams = f.Varint(), f.Varint()
	w.Hold = time.Duration(min(f.Varint(), 1<<40)) * time.Millisecond
	w.Features = f.features()
	if f.Err != nil {
		return nil, fmt.Errorf("reading Welcome: %w", f.Err)
	}
	return w, nil
}
