package tcp

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"wmproxy/internal/udpio"
	"wmproxy/tunnel/carrier"
)

// Listener accepts TCP connections that become yamux carriers.
type Listener struct {
	ln      net.Listener
	tls     *tls.Config
	dead    time.Duration
	windows carrier.Windows
}

// Listen accepts from ln, which the listener then owns. dead is Timers.Dead, 0
// its default: connections outlive that much silence. w bounds the data a client may send ahead.
func Listen(ln net.Listener, tlsConf *tls.Config, dead time.Duration, w carrier.Windows) *Listener {
	return &Listener{ln: ln, tls: fullRecords(tlsConf), dead: dead, windows: w}
}

// Accept returns the next connection. It has not passed TLS yet: that
// happens in Handshake, in the goroutine and within the bound of its caller, so
// that a slow client delays nobody. Until then Protocol and ExportKey have
// nothing to say. The errors are the listener's. One goroutine at a time calls it.
func (l *Listener) Accept(ctx context.Context) (carrier.Pending, error) {
	if ln, ok := l.ln.(interface{ SetDeadline(time.Time) error }); ok {
		ln.SetDeadline(time.Time{})
		defer context.AfterFunc(ctx, func() { ln.SetDeadline(carrier.LongAgo) })()
	}
	raw, err := l.ln.Accept()
	if ctx.Err() != nil {
		if err == nil {
			raw.Close()
		}
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	records := &recordConn{Conn: udpio.RawConn(raw)}
	return &pending{raw: raw, records: records, tls: tls.Server(records, l.tls), dead: l.dead, windows: l.windows}, nil
}

// Addr is the address of the listener.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Close stops accepting. Connections that were accepted stay.
func (l *Listener) Close() error {
	return l.ln.Close()
}
