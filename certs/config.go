package certs

import (
	"crypto/tls"
	"errors"
	"slices"
)

// ServerConfig returns the TLS configuration of a server, for TCP and for QUIC.
// current is called at each handshake, so the certificate may change: it is
// (*Identity).Certificate or (*Files).Certificate.
//
// A client that offers another protocol than alpn, or none, still passes the TLS
// handshake, so that both sides can report the mismatch instead of a bare alert.
// The caller must refuse a connection if its
// ConnectionState().NegotiatedProtocol is not alpn.
func ServerConfig(current func() *tls.Certificate, alpn string) *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpn},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return current(), nil
		},
		// Every attach authenticates in full, so a ticket would save one signature
		// and make it unclear what a resumed connection has proved. Without
		// tickets there is no 0-RTT either.
		SessionTicketsDisabled: true,
		// Small first records help browsers, but only cost a tunnel.
		DynamicRecordSizingDisabled: true,
	}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, alpn) {
			return nil, nil
		}
		// crypto/tls accepts any client if the server has no protocols, but a
		// QUIC client that offered some requires an answer (RFC 9001 section
		// 8.1): it gets its own first choice back.
		other := config.Clone()
		other.GetConfigForClient = nil
		other.NextProtos = slices.Clone(hello.SupportedProtos[:min(1, len(hello.SupportedProtos))])
		return other, nil
	}
	return config
}

// ClientConfig returns the TLS configuration of a client of host, a name or an
// IP address. With a pin, the server must have the pinned key, and names and
// dates are ignored, because the clocks of devices behind NAT are often wrong: a
// mismatch is a *PinError. Without a pin, the system's roots decide, and errors
// are those of crypto/tls (*tls.CertificateVerificationError).
//
// The server may have accepted the connection only to refuse it: check that
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
	// VerifyConnection below does all the verification.
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("the server presented no certificate")
		}
		if got := PinOf(state.PeerCertificates[0]); got != want {
			return &PinError{Want: want, Got: got}
		}
		return nil
	}
	return config
}
