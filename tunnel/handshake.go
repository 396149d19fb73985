package tunnel

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/quic-go/quic-go/quicvarint"
)

// Versions of the protocol that this program speaks.
const (
	minVersion = 2
	maxVersion = 2
)

const (
	// HandshakeTimeout bounds TLS, Hello and Welcome together.
	HandshakeTimeout = 5 * time.Second

	// MaxUser and MaxToken bound the credentials in bytes.
	MaxUser  = 64
	MaxToken = 256

	exporterLabel = "EXPORTER-wmproxy-attach"
	secretLen     = 32
)

// SessionID is chosen by the client at random.
type SessionID [16]byte

func (id SessionID) String() string { return fmt.Sprintf("%x", id[:4]) }

// Credentials are what a client shows a server.
type Credentials struct {
	User  string
	Token string
}

// hello is the client's first message:
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
type hello struct {
	minVersion, maxVersion uint64
	Credentials
	session  SessionID
	attach   uint64
	proof    [32]byte
	secret   []byte // nil or secretLen bytes
	features Features
}

func (h *hello) append(b []byte) []byte {
	b = quicvarint.Append(quicvarint.Append(b, h.minVersion), h.maxVersion)
	b = appendText(appendText(b, h.User), h.Token)
	b = quicvarint.Append(append(b, h.session[:]...), h.attach)
	b = append(b, h.proof[:]...)
	if h.secret == nil {
		b = append(b, 0)
	} else {
		b = append(append(b, 1), h.secret...)
	}
	return quicvarint.Append(b, uint64(h.features))
}

func parseHello(payload []byte) (*hello, error) {
	f := fields{b: payload}
	h := &hello{minVersion: f.varint(), maxVersion: f.varint()}
	if f.err == nil && (h.minVersion > maxVersion || h.maxVersion < minVersion) {
		return h, nil // the rest may be laid out otherwise
	}
	h.User, h.Token = f.text(MaxUser), f.text(MaxToken)
	copy(h.session[:], f.bytes(len(h.session)))
	h.attach = f.varint()
	copy(h.proof[:], f.bytes(len(h.proof)))
	if f.bytes(1)[0] == 1 {
		h.secret = append([]byte(nil), f.bytes(secretLen)...)
	}
	h.features = f.features()
	if f.err != nil {
		return nil, fmt.Errorf("reading Hello: %w", f.err)
	}
	return h, nil
}

// welcome is the server's answer:
//
//	version varint · instance 16 · resumed u8 · most flows varint · most streams varint · hold varint, ms
//	features varint
type welcome struct {
	version    uint64
	instance   [16]byte
	resumed    bool
	maxFlows   uint64
	maxStreams uint64
	hold       time.Duration
	features   Features
}

func (w *welcome) append(b []byte) []byte {
	b = append(quicvarint.Append(b, w.version), w.instance[:]...)
	resumed := byte(0)
	if w.resumed {
		resumed = 1
	}
	b = quicvarint.Append(append(b, resumed), w.maxFlows)
	b = quicvarint.Append(b, w.maxStreams)
	b = quicvarint.Append(b, uint64(w.hold.Milliseconds()))
	return quicvarint.Append(b, uint64(w.features))
}

func parseWelcome(payload []byte) (*welcome, error) {
	f := fields{b: payload}
	w := &welcome{version: f.varint()}
	copy(w.instance[:], f.bytes(len(w.instance)))
	w.resumed = f.bytes(1)[0] == 1
	w.maxFlows, w.maxStreams = f.varint(), f.varint()
	w.hold = time.Duration(min(f.varint(), 1<<40)) * time.Millisecond
	w.features = f.features()
	if f.err != nil {
		return nil, fmt.Errorf("reading Welcome: %w", f.err)
	}
	if w.version < minVersion || w.version > maxVersion {
		return nil, &CloseError{Code: CodeVersion, Reason: fmt.Sprintf("the server chose version %d", w.version)}
	}
	return w, nil
}

// incarnation is a session as one server process knows it. A server that
// restarted has never heard of it, and the client makes the next one.
type incarnation struct {
	id        SessionID
	secret    [secretLen]byte
	confirmed bool // the server has said Welcome to it
}

func newIncarnation() *incarnation {
	in := &incarnation{}
	rand.Read(in.id[:])
	rand.Read(in.secret[:])
	return in
}

func (in *incarnation) proof(kind Kind, attach uint64, exporter []byte) (p [32]byte) {
	return sessionProof(in.secret[:], in.id, kind, attach, exporter)
}

func sessionProof(secret []byte, id SessionID, kind Kind, attach uint64, exporter []byte) (p [32]byte) {
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
func (s *Session) handshakeClient(ctx context.Context, p Pending, cred Credentials, attach uint64) (*welcome, *incarnation, error) {
	rw, err := p.Handshake(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	if p.Protocol() != ALPN {
		return nil, nil, &CloseError{Code: CodeALPN, Reason: fmt.Sprintf("negotiated %q", p.Protocol())}
	}
	exporter, err := p.ExportKey(exporterLabel, 32)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	var buf []byte
	for range 2 { // once more after Renew
		in := s.current()
		h := hello{
			minVersion: minVersion, maxVersion: maxVersion,
			Credentials: cred, session: in.id, attach: attach,
			proof: in.proof(p.Traits().Kind, attach, exporter), features: ownFeatures,
		}
		if !s.isConfirmed(in) {
			h.secret = in.secret[:]
		}
		if _, err := rw.Write(appendMessage(nil, msgHello, h.append(nil))); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrHandshake, err)
		}
		t, payload, err := readHandshake(rw, &buf)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrHandshake, err)
		}
		switch t {
		case msgWelcome:
			w, err := parseWelcome(payload)
			return w, in, err
		case msgRefuse:
			refusal, err := parseSentence(payload)
			if err != nil {
				return nil, nil, err
			}
			return nil, nil, refusal
		case msgRenew:
			s.renew(in)
		default:
			return nil, nil, fmt.Errorf("%w: unexpected message of type %d", ErrHandshake, t)
		}
	}
	return nil, nil, fmt.Errorf("%w: the server does not take a new session", ErrHandshake)
}

// readHandshake reads one message byte by byte: what follows it on the stream
// is no longer ours to read.
func readHandshake(r io.Reader, buf *[]byte) (messageType, []byte, error) {
	b := bufio.NewReaderSize(oneByte{r}, 16)
	t, payload, err := readMessage(b, *buf)
	*buf = payload
	return t, payload, err
}

// oneByte makes a buffered reader take no more than it is asked for.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

// clientHello is a Hello with what is needed to check and answer it.
type clientHello struct {
	*hello
	exporter []byte
	rw       io.ReadWriter // nil where there is nothing to answer on
}

// readHello waits for the client's Hello and checks everything but the session.
// With an error, what it returns has rw alone, or not even that.
func (r *Registry) readHello(ctx context.Context, p Pending) (*clientHello, error) {
	rw, err := p.Handshake(ctx)
	if err != nil {
		return &clientHello{}, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	hh := &clientHello{rw: rw}
	if p.Protocol() != ALPN {
		return hh, &CloseError{Code: CodeALPN, Reason: fmt.Sprintf("this server speaks %s; the client asked for %q", ALPN, p.Protocol())}
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
	if t != msgHello {
		return &CloseError{Code: CodeProtocol, Reason: "the first message must be Hello"}
	}
	if hh.hello, err = parseHello(payload); err != nil {
		return &CloseError{Code: CodeProtocol, Reason: "malformed Hello"}
	}
	if hh.minVersion > maxVersion || hh.maxVersion < minVersion {
		return &CloseError{Code: CodeVersion, Reason: fmt.Sprintf(
			"this server speaks protocol versions %d to %d, the client %d to %d", minVersion, maxVersion, hh.minVersion, hh.maxVersion)}
	}
	if r.cfg.Authenticate(hh.Credentials) == nil {
		return errCredentials
	}
	return nil
}

var errCredentials = &CloseError{Code: CodeAuth, Reason: "unknown user or wrong token"}

// join finds or makes the session that hh asks for. A nil session without an
// error says that the client must come again with a new one.
func (r *Registry) join(hh *clientHello, kind Kind) (s *Session, resumed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, false, &CloseError{Code: CodeShutdown, Reason: "the server is shutting down"}
	}
	// Again, with r.mu held: no session may appear after EndSessions has looked for it.
	u := r.cfg.Authenticate(hh.Credentials)
	if u == nil {
		return nil, false, errCredentials
	}
	key := sessionKey{u, hh.session}
	s = r.sessions[key]
	if s == nil && hh.secret == nil {
		return nil, false, nil
	}
	secret := hh.secret
	if s != nil {
		secret = s.inc.secret[:]
	}
	want := sessionProof(secret, hh.session, kind, hh.attach, hh.exporter)
	if subtle.ConstantTimeCompare(want[:], hh.proof[:]) != 1 {
		return nil, false, &CloseError{Code: CodeSession, Reason: "the proof of the session's secret is wrong"}
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
func refuse(p Pending, rw io.ReadWriter, err error) {
	e := &CloseError{Code: CodeProtocol, Reason: "the handshake failed"}
	switch {
	case errors.As(err, &e):
	case isTimeout(err):
		e = &CloseError{Code: CodeTimeout, Reason: "the handshake took too long"}
	}
	if rw != nil {
		_, _ = rw.Write(appendMessage(nil, msgRefuse, appendSentence(nil, e.Code, e.Reason)))
	}
	p.Close(e.Code, e.Reason)
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}
