package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"wmproxy/certs"
	"wmproxy/internal/config"
	"wmproxy/internal/link"
	"wmproxy/internal/testmain"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

func TestMain(m *testing.M) { testmain.Run(m) }

var testLink = link.Link{Name: "alice", Secret: "s3cret", Host: "vpn.example.net", Port: 8090}

func TestEveryFailureBecomesASentenceThatSaysWhatToDo(t *testing.T) {
	verify := func(err error) error { return &tls.CertificateVerificationError{Err: err} }
	for _, c := range []struct {
		name  string
		err   error
		says  string
		final bool
	}{
		{"wrong token", &carrier.CloseError{Code: carrier.CodeAuth}, "does not know this user and token; get a new link", true},
		{"wrong pin", fmt.Errorf("dial: %w", &certs.PinError{}), "another key than the link's pin", true},
		{"wrong version", &carrier.CloseError{Code: carrier.CodeVersion, Reason: "1 to 1"}, "another version", true},
		{"wrong ALPN", &carrier.CloseError{Code: carrier.CodeALPN}, "does not speak wmproxy/1", true},
		{"expired", verify(x509.CertificateInvalidError{Reason: x509.Expired}), "has expired", true},
		{"another name", verify(x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}), "is for another name", true},
		{"unknown authority", verify(x509.UnknownAuthorityError{}), "not from an authority", true},
		{"not TLS", tls.RecordHeaderError{}, "does not speak TLS", true},
		{"no name", &net.DNSError{Err: "no such host", Name: "vpn.example.net"}, "vpn.example.net cannot be resolved", false},
		{"refused", fmt.Errorf("connect: %w", syscall.ECONNREFUSED), "nothing listens at", false},
		{"no route", fmt.Errorf("connect: %w", syscall.ENETUNREACH), "no route to", false},
		{"no IPv6", fmt.Errorf("connect: %w", syscall.EAFNOSUPPORT), "no route to", false},
		{"timeout", fmt.Errorf("connect: %w", context.DeadlineExceeded), "no answer from", false},
		{"mute", fmt.Errorf("%w: %w", carrier.ErrMute, context.DeadlineExceeded), "then nothing comes, in small packets neither", false},
		{"deadline", os.ErrDeadlineExceeded, "no answer from", false},
		{"closed", fmt.Errorf("%w: %w", tunnel.ErrHandshake, io.EOF), "closed the connection", false},
		{"shutdown", &carrier.CloseError{Code: carrier.CodeShutdown}, "is shutting down", false},
		{"else", errors.New("strange"), "failed: strange", false},
	} {
		got := explain(c.err, testLink)
		if !strings.Contains(got.sentence, c.says) || got.final != c.final {
			t.Errorf("%s: %q, final %v; want %q, %v", c.name, got.sentence, got.final, c.says, c.final)
		}
		if strings.Contains(got.sentence, testLink.Secret) || strings.Contains(got.sentence, "\n") {
			t.Errorf("%s: %q", c.name, got.sentence)
		}
	}
}

func TestWaitsDoubleWithJitterUpToABound(t *testing.T) {
	var b backoff
	for i, want := range []time.Duration{firstBackoff, 2 * firstBackoff, 4 * firstBackoff, 8 * firstBackoff} {
		if got := b.next(); got < want/2 || got >= want*3/2 {
			t.Errorf("wait %d: %v, want %v give or take a half", i, got, want)
		}
	}
	for range 20 {
		b.next()
	}
	if got := b.next(); got < lastBackoff/2 || got >= lastBackoff*3/2 {
		t.Errorf("the last wait is %v, want about %v", got, lastBackoff)
	}
	b.reset()
	if got := b.next(); got >= firstBackoff*3/2 {
		t.Errorf("after a success: %v", got)
	}
}

func TestTheStateOfTheTunnelIsOneLine(t *testing.T) {
	s := newStatus(slog.New(slog.DiscardHandler), "vpn:8090", kindsOf(config.Auto))
	nothing := tunnel.NewSession(tunnel.SessionConfig{})
	defer nothing.Close(carrier.CodeNone, "")
	if line, _ := s.line(nothing); line != "" {
		t.Errorf("before anything was tried: %q", line)
	}
	s.failed(carrier.KindQUIC, "no answer", false)
	s.failed(carrier.KindYamux, "no answer", false)
	if line, up := s.line(nothing); line != "tunnel down, trying again: no answer" || up {
		t.Errorf("the same reason twice: %q", line)
	}
	s.failed(carrier.KindYamux, "refused", false)
	if line, _ := s.line(nothing); line != "tunnel down, trying again: quic: no answer; yamux: refused" {
		t.Errorf("two reasons: %q", line)
	}
}
