package tunnel

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/wire"
)

const exporterLabel = "EXPORTER-wmproxy-attach"

// SessionID is chosen by the client at random.
type SessionID [16]byte

func (id SessionID) String() string { return fmt.Sprintf("%x", id[:4]) }

// Credentials are what a client shows a server.
type Credentials struct {
	User  string
	Token string
}

// incarnation is a session as one server process knows it. A server that
// restarted has never heard of it, and the client makes the next one.
type incarnation struct {
	id        SessionID
	secret    [wire.SecretLen]byte
	confirmed bool // the server has said Welcome to it
}

func newIncarnation() *incarnation {
	in := &incarnation{}
	rand.Read(in.id[:])
	rand.Read(in.secret[:])
	return in
}

func (in *incarnation) proof(kind carrier.Kind, attach uint64, exporter []byte) (p [32]byte) {
	return sessionProof(in.secret[:], in.id, kind, attach, exporter)
}

func sessionProof(secret []byte, id SessionID, kind carrier.Kind, attach uint64, exporter []byte) (p [32]byte) {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte("wmproxy attach"))
	m.Write([]byte{byte(kind)})
	m.Write(binary.BigEndian.AppendUint64(nil, attach))
	m.Write(id[:])
	m.Write(exporter)
	m.Sum(p[:0])
	return p
}

// ErrHandshake wraps what went wrong between TLS and Welcome, other than a refusal.
var ErrHandshake = errors.New("handshake failed")

// handshakeClient says Hello on p and returns the server's Welcome together with
// the incarnation that it belongs to.
func (s *Session) handshakeClient(ctx context.Context, p carrier.Pending, cred Credentials, attach uint64) (*wire.Welcome, *incarnation, error) {
	rw, err := p.Handshake(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	if p.Protocol() != carrier.ALPN {
		return nil, nil, &carrier.CloseError{Code: carrier.CodeALPN, Reason: fmt.Sprintf("negotiated %q", p.Protocol())}
	}
	exporter, err := p.ExportKey(exporterLabel, 32)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	var buf []byte
	for range 2 { // once more after Renew
		in := s.current()
		h := wire.Hello{
			MinVersion: wire.MinVersion, MaxVersion: wire.MaxVersion,
			User: cred.User, Token: cred.Token, Session: in.id, Attach: attach,
			Proof: in.proof(p.Traits().Kind, attach, exporter), Features: wire.OwnFeatures,
		}
		if !s.isConfirmed(in) {
			h.Secret = in.secret[:]
		}
		if _, err := rw.Write(wire.AppendMessage(nil, wire.MsgHello, h.Append(nil))); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrHandshake, err)
		}
		t, payload, err := readHandshake(rw, &buf)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrHandshake, err)
		}
		switch t {
		case wire.MsgWelcome:
			w, err := wire.ParseWelcome(payload)
			if err == nil && !w.Known() {
				err = &carrier.CloseError{Code: carrier.CodeVersion, Reason: fmt.Sprintf("the server chose version %d", w.Version)}
			}
			return w, in, err
		case wire.MsgRefuse:
			code, reason, err := wire.ParseSentence(payload)
			if err != nil {
				return nil, nil, err
			}
			return nil, nil, &carrier.CloseError{Code: carrier.ErrorCode(code), Reason: reason}
		case wire.MsgRenew:
			s.renew(in)
		default:
			return nil, nil, fmt.Errorf("%w: unexpected message of type %d", ErrHandshake, t)
		}
	}
	return nil, nil, fmt.Errorf("%w: the server does not take a new session", ErrHandshake)
}

// readHandshake reads one message byte by byte: what follows it on the stream
// is no longer ours to read.
func readHandshake(r io.Reader, buf *[]byte) (wire.MessageType, []byte, error) {
	b := wire.Unbuffered(r)
	t, payload, err := wire.ReadMessage(b, *buf)
	*buf = payload
	return t, payload, err
}

// clientHello is a Hello with what is needed to check and answer it.
type clientHello struct {
	*wire.Hello
	exporter []byte
	rw       io.ReadWriter // nil where there is nothing to answer on
}

// readHello waits for the client's Hello and checks everything but the session.
// With an error, what it returns has rw alone, or not even that.
func (r *Registry) readHello(ctx context.Context, p carrier.Pending) (*clientHello, error) {
	rw, err := p.Handshake(ctx)
	if err != nil {
		return &clientHello{}, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	hh := &clientHello{rw: rw}
	if p.Protocol() != carrier.ALPN {
		return hh, &carrier.CloseError{Code: carrier.CodeALPN, Reason: fmt.Sprintf("this server speaks %s; the client asked for %q", carrier.ALPN, p.Protocol())}
	}
	if hh.exporter, err = p.ExportKey(exporterLabel, 32); err != nil {
		return hh, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	return hh, r.nextHello(hh)
}

func (r *Registry) nextHello(hh *clientHello) error {
	var buf []byte
	t, payload, err := readHandshake(hh.rw, &buf)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	if t != wire.MsgHello {
		return &carrier.CloseError{Code: carrier.CodeProtocol, Reason: "the first message must be Hello"}
	}
	if hh.Hello, err = wire.ParseHello(payload); err != nil {
		return &carrier.CloseError{Code: carrier.CodeProtocol, Reason: "malformed Hello"}
	}
	if !hh.Known() {
		return &carrier.CloseError{Code: carrier.CodeVersion, Reason: fmt.Sprintf(
			"this server speaks protocol versions %d to %d, the client %d to %d", wire.MinVersion, wire.MaxVersion, hh.MinVersion, hh.MaxVersion)}
	}
	if r.cfg.Authenticate(Credentials{hh.User, hh.Token}) == nil {
		return errCredentials
	}
	return nil
}

var errCredentials = &carrier.CloseError{Code: carrier.CodeAuth, Reason: "unknown user or wrong token"}

// join finds or makes the session that hh asks for. A nil session without an
// error says that the client must come again with a new one.
func (r *Registry) join(hh *clientHello, kind carrier.Kind) (s *Session, resumed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, false, &carrier.CloseError{Code: carrier.CodeShutdown, Reason: "the server is shutting down"}
	}
	// Again, with r.mu held: no session may appear after EndSessions has looked for it.
	u := r.cfg.Authenticate(Credentials{hh.User, hh.Token})
	if u == nil {
		return nil, false, errCredentials
	}
	key := sessionKey{u, hh.Session}
	s = r.sessions[key]
	if s == nil && hh.Secret == nil {
		return nil, false, nil
	}
	secret := hh.Secret
	if s != nil {
		secret = s.inc.secret[:]
	}
	want := sessionProof(secret, hh.Session, kind, hh.Attach, hh.exporter)
	if subtle.ConstantTimeCompare(want[:], hh.Proof[:]) != 1 {
		return nil, false, &carrier.CloseError{Code: carrier.CodeSession, Reason: "the proof of the session's secret is wrong"}
	}
	if s != nil {
		return s, true, s.hold()
	}
	if s, err = r.create(key, secret); err != nil {
		return nil, false, err
	}
	return s, false, s.hold()
}

// refuse tells the client why, on the stream and, where the transport can, with
// the connection's end.
func refuse(p carrier.Pending, rw io.ReadWriter, err error) {
	e := &carrier.CloseError{Code: carrier.CodeProtocol, Reason: "the handshake failed"}
	switch {
	case errors.As(err, &e):
	case carrier.IsTimeout(err):
		e = &carrier.CloseError{Code: carrier.CodeTimeout, Reason: "the handshake took too long"}
	}
	if rw != nil {
		_, _ = rw.Write(wire.AppendMessage(nil, wire.MsgRefuse, wire.AppendSentence(nil, uint64(e.Code), e.Reason)))
	}
	p.Close(e.Code, e.Reason)
}
