package tcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"reflect"
	"syscall"
	"time"

	"wmproxy/internal/udpio"
	"wmproxy/tunnel/carrier"
)

// tlsEnd is the end of an attempt at TLS.
type tlsEnd struct {
	p   *pending
	err error
}

// Dial connects to the server at addr over TCP and returns once TLS has
// passed. If that takes longer than tlsSilence it also tries a connection with small segments, and
// returns the first that passes. dead is Timers.Dead, 0 its default: the connection outlives that much
// silence. ctx bounds the call alone. Errors of tlsConf's verification are wrapped.
func Dial(ctx context.Context, addr *net.TCPAddr, tlsConf *tls.Config, dead time.Duration) (carrier.Pending, error) {
	full := &pending{client: true, dead: dead}
	if err := full.dial(ctx, addr); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan tlsEnd)
	go func() { ended <- tlsEnd{full, full.startTLS(ctx, tlsConf)} }()
	silence := time.NewTimer(tlsSilence)
	defer silence.Stop()

	var passed *pending
	var failure error // of the first connection
	for running := 1; running > 0; {
		select {
		case <-silence.C:
			if !canLimitSegments {
				continue
			}
			running++
			go func() {
				small := &pending{client: true, dead: dead, small: true}
				err := small.dial(ctx, addr)
				if err == nil {
					err = small.startTLS(ctx, tlsConf)
				}
				ended <- tlsEnd{small, err}
			}()
		case end := <-ended:
			running--
			switch {
			case end.err == nil && passed == nil:
				passed = end.p
				cancel()
			case end.err == nil:
				end.p.raw.Close() // it passed at the same time
			case end.p == full:
				failure = end.err
				if !carrier.IsTimeout(end.err) {
					cancel() // a wrong pin, for example: the other attempt would fail too
				}
			}
		}
	}
	switch {
	case passed != nil:
		return passed, nil
	case carrier.IsTimeout(failure):
		return nil, fmt.Errorf("%w: %w", carrier.ErrMute, failure)
	}
	return nil, failure
}

// dial connects.
func (p *pending) dial(ctx context.Context, addr *net.TCPAddr) (err error) {
	var d net.Dialer
	if p.small {
		d.Control = func(_, _ string, c syscall.RawConn) error { return limitSegments(c, smallSegment) }
	}
	if p.raw, err = d.DialContext(ctx, "tcp", addr.String()); err != nil {
		return fmt.Errorf("connect over TCP: %w", err)
	}
	return nil
}

// startTLS returns once TLS has passed; with an error it has closed the connection.
func (p *pending) startTLS(ctx context.Context, conf *tls.Config) error {
	p.congestion = tuneTCP(p.raw, p.dead)
	p.records = &recordConn{Conn: udpio.RawConn(p.raw)}
	p.tls = tls.Client(p.records, fullRecords(conf))
	if err := p.tls.HandshakeContext(ctx); err != nil {
		p.raw.Close()
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" && alertNumber(op.Err) == carrier.AlertNoProtocol {
			err = fmt.Errorf("%w: %w", carrier.ErrALPN, err)
		}
		return fmt.Errorf("TLS handshake with %v: %w", p.raw.RemoteAddr(), err)
	}
	return nil
}

// Client returns the client's end of a connection over raw once TLS has passed. raw is closed with it, or with the error.
func Client(ctx context.Context, raw net.Conn, conf *tls.Config, dead time.Duration) (carrier.Pending, error) {
	p := &pending{raw: raw, client: true, dead: dead}
	if err := p.startTLS(ctx, conf); err != nil {
		return nil, err
	}
	return p, nil
}

// alertNumber returns the number of a TLS alert, or -1. crypto/tls returns alerts as an
// unexported type with the number as its value.
func alertNumber(err error) int {
	if v := reflect.ValueOf(err); v.Kind() == reflect.Uint8 {
		return int(v.Uint())
	}
	return -1
}

// fullRecords returns conf without TLS's habit of beginning with small records,
// also where conf chooses another for each client.
func fullRecords(conf *tls.Config) *tls.Config {
	conf = conf.Clone()
	conf.DynamicRecordSizingDisabled = true
	if choose := conf.GetConfigForClient; choose != nil {
		conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if chosen == nil || chosen.DynamicRecordSizingDisabled {
				return chosen, err
			}
			chosen = chosen.Clone()
			chosen.DynamicRecordSizingDisabled = true
			return chosen, err
		}
	}
	return conf
}
