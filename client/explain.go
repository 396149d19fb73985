package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"wmproxy/certs"
	"wmproxy/internal/link"
	"wmproxy/tunnel/carrier"
)

// explanation is the reason of a failed attempt, as one sentence with advice.
type explanation struct {
	sentence string
	// final is set if another attempt will hardly succeed soon.
	final bool
}

// explain returns the explanation of an error.
func explain(err error, l link.Link) explanation {
	server := l.Address()
	var (
		refusal  *carrier.CloseError
		pin      *certs.PinError
		invalid  x509.CertificateInvalidError
		hostname x509.HostnameError
		unknown  x509.UnknownAuthorityError
		verify   *tls.CertificateVerificationError
		header   tls.RecordHeaderError
		op       *net.OpError
		dns      *net.DNSError
	)
	final := func(format string, args ...any) explanation {
		return explanation{fmt.Sprintf(format, args...), true}
	}
	again := func(format string, args ...any) explanation {
		return explanation{fmt.Sprintf(format, args...), false}
	}
	switch {
	case err == nil:
		return again("the connection to %s ended", server)
	case errors.As(err, &refusal) && refusal.Own:
		return again("the connection to %s was given up: %s", server, refusal.Reason)
	case errors.As(err, &refusal):
		return explainRefusal(refusal, server)
	case errors.As(err, &pin):
		return final("the server at %s has another key than the link's pin; get a new link from the server, or someone is in between", server)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return final("the certificate of %s has expired or is not yet valid; renew it on the server, or check this machine's clock", server)
	case errors.As(err, &hostname):
		return final("the certificate of %s is for another name; use the name in it, or a link with a pin", server)
	case errors.As(err, &unknown):
		return final("the certificate of %s is not from an authority that this machine trusts; use a link with a pin", server)
	case errors.As(err, &verify):
		return final("the certificate of %s is not valid: %v", server, verify.Err)
	case errors.Is(err, carrier.ErrALPN):
		return final("the server at %s does not speak %s; check the address, or update it", server, carrier.ALPN)
	case errors.As(err, &op) && op.Op == "remote error":
		return again("the server at %s refused TLS (%v); check that it is a wmproxy server", server, op.Err)
	case errors.As(err, &header):
		return final("%s is not a wmproxy server: it does not speak TLS", server)
	case errors.As(err, &dns):
		return again("the name %s cannot be resolved (%s); check the network", l.Host, dns.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return again("nothing listens at %s; check that the server runs and that its port is open", server)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EAFNOSUPPORT):
		return again("no route to %s; check the network", server)
	case errors.Is(err, carrier.ErrMute):
		return again("TCP connects to %s and then nothing comes, in small packets neither; check that it is a wmproxy server that listens there", server)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return again("no answer from %s; check that the server runs and that a firewall lets its port through", server)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return again("the server at %s closed the connection", server)
	}
	return again("the connection to %s failed: %v", server, err)
}

func explainRefusal(e *carrier.CloseError, server string) explanation {
	switch e.Code {
	case carrier.CodeAuth:
		return explanation{fmt.Sprintf("the server at %s does not know this user and token; get a new link from the server", server), true}
	case carrier.CodeVersion:
		return explanation{fmt.Sprintf("the server at %s speaks another version (%q); update the older of the two", server, e.Reason), true}
	case carrier.CodeALPN:
		return explanation{fmt.Sprintf("the server at %s does not speak %s (%q); check the address, or update it", server, carrier.ALPN, e.Reason), true}
	case carrier.CodeShutdown:
		return explanation{fmt.Sprintf("the server at %s is shutting down", server), false}
	}
	return explanation{fmt.Sprintf("the server at %s ended the connection (%q)", server, e.Reason), false}
}

// explainQUIC is like explain for QUIC. small is set if TCP has found that the path loses large packets.
func explainQUIC(err error, l link.Link, small bool) explanation {
	if small && (errors.Is(err, context.DeadlineExceeded) || isTimeout(err)) {
		return explanation{fmt.Sprintf("no answer from %s over UDP: the path seems to lose large packets, and QUIC needs %d bytes (%d over IPv6)",
			l.Address(), leastQUICPath4, leastQUICPath6), false}
	}
	return explain(err, l)
}

// The smallest MTU for QUIC in bytes: packets of 1,200 (RFC 9000 section 14) and the headers of UDP and IP.
const (
	leastQUICPath4 = 1200 + 8 + 20
	leastQUICPath6 = 1200 + 8 + 40
)

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
