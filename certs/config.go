package certs

import (
	"crypto/tls"
	"errors"
	"slices"
)

// ErrNoCertificate says that a TLS server showed no certificate at all.
var ErrNoCertificate = errors.New("the server showed no certificate")

// ServerConfig returns the TLS configuration of a server, for TCP and for QUIC.
// current is asked at each handshake, so what it returns may change: it is
// (*Identity).Certificate or (*Files).Certificate.
//
// A client that offers another protocol than alpn, or none, passes the TLS
// handshake all the same, so that both sides can say what is wrong instead of
// seeing a bare alert. The caller must refuse every connection whose
// ConnectionState().NegotiatedProtocol is not alpn.
func ServerConfig(current func() *tls.Certificate, alpn string) *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpn},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return current(), nil
		},
		// Every attach authenticates in full, so a ticket buys one signature and
		// costs the question of what a resumed connection has proved. Without
		// tickets there is no 0-RTT either.
		SessionTicketsDisabled: true,
		// The bulk of the traffic is a tunnel's: small first records only cost.
		DynamicRecordSizingDisabled: true,
	}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, alpn) {
			return nil, nil
		}
		// crypto/tls takes any client when the server has no protocols, but a
		// QUIC client that offered some insists on an answer (RFC 9001 section
		// 8.1): it gets its own first choice back.
		other := config.Clone()
		other.GetConfigForClient = nil
		other.NextProtos = slices.Clone(hello.SupportedProtos[:min(1, len(hello.SupportedProtos))])
		return other, nil
	}
	return config
}

// ClientConfig returns the TLS configuration of a client of host, a name or an
// IP address. With a pin, the server is the one that has the pinned key, and
// names and dates are ignored, because clocks behind NAT are wrong: a mismatch
// is a *PinError. Without one, the system's roots count and errors are those of
// crypto/tls (*tls.CertificateVerificationError).
//
// A server may have accepted the connection only to refuse it: check that
// ConnectionState().NegotiatedProtocol is alpn.
func ClientConfig(pin *Pin, host, alpn string) *tls.Config {
	config := &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		ServerName:                  host,
		NextProtos:                  []string{alpn},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
	if pin == nil {
		return config
	}
	want := *pin
	// Not a lack of verification: VerifyConnection below is all of it.
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return ErrNoCertificate
		}
		if got := PinOf(state.PeerCertificates[0]); !got.Equal(want) {
			return &PinError{Want: want, Got: got}
		}
		return nil
	}
	return config
}
