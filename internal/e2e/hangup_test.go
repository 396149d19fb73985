//go:build unix

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"wmproxy/internal/status"
)

// hangUp sends SIGHUP and waits for the log line of the reload.
func hangUp(p *process, what string) logLine {
	p.t.Helper()
	first := len(p.Logs())
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		p.t.Fatal(err)
	}
	l, _ := p.WaitLogAfter(first, what, containing(what))
	return l
}

// as returns the link with another user and token.
func as(t testing.TB, text, name, secret string) string {
	t.Helper()
	l := parsedLink(t, text)
	l.Name, l.Secret = name, secret
	return l.Text()
}

func writeTokens(t testing.TB, path string, tokens ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(tokens, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHangupReloadsTokens(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tokens")
	writeTokens(t, file, "alice:secret-of-alice", "bob:secret-of-bob", "carol:secret-of-carol")
	s := startServer(t, "--token-file", file)
	s.secrets = append(s.secrets, "secret-of-bob", "secret-of-carol", "secret-of-dave", "another-secret")
	echo := startEcho(t)
	alice := startClient(t, s.Link)
	bob := startClient(t, as(t, s.Link, "bob", "secret-of-bob"))
	carol := startClient(t, as(t, s.Link, "carol", "secret-of-carol"))
	stays := associate(t, alice.Socks())
	ping(t, stays, echo)
	stream := connect(t, alice.Socks(), echo)

	writeTokens(t, file, "alice:secret-of-alice", "carol:another-secret", "dave:secret-of-dave")
	l := hangUp(s.process, "the tokens were read again")
	if l.Int("users") != 3 || l.String("added") != "dave" || l.String("removed") != "bob" ||
		l.String("new_secret") != "carol" || l.Int("sessions_ended") != 2 {
		t.Errorf("the server says %s", l.Raw)
	}
	for _, c := range []*socksProcess{bob, carol} {
		c.WaitLog("the refusal", containing("does not know this user and token; get a new link from the server"))
	}
	dave := startClient(t, as(t, s.Link, "dave", "secret-of-dave"))
	ping(t, associate(t, dave.Socks()), echo)

	// The user who stays loses nothing.
	ping(t, stays, echo)
	if _, err := stream.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := stream.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if n := s.CountLogs(func(l logLine) bool {
		return l.Msg == "client attached" && l.String("user") == "alice" && l.String("resumed") == "false"
	}); n != 1 {
		t.Errorf("alice has had %d sessions, want 1", n)
	}
}

func TestHangupWithBrokenTokensChangesNothing(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tokens")
	writeTokens(t, file, "alice:secret-of-alice")
	s := startServer(t, "--token-file", file)
	c := startClient(t, s.Link)
	for _, test := range []struct{ content, says string }{
		{"alice", "a token must be written NAME:SECRET"},
		{"", "has no token in it; put NAME:SECRET on a line"},
	} {
		writeTokens(t, file, test.content)
		l := hangUp(s.process, "the tokens cannot be used, the old ones stay")
		if l.Level != "ERROR" || !strings.Contains(l.String("error"), test.says) {
			t.Errorf("of %q the server says %s, want %q", test.content, l.Raw, test.says)
		}
	}
	ping(t, associate(t, c.Socks()), startEcho(t))
	startClient(t, s.Link)
}

func TestHangupRotatesTheRandomToken(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	c := startClient(t, s.Link)
	if err := os.Remove(filepath.Join(s.StateDir, "token")); err != nil {
		t.Fatal(err)
	}
	hangUp(s.process, "the tokens were read again")
	c.WaitLog("the refusal", containing("does not know this user and token"))
	awaitReport(t, s.StateDir, "the reason", func(r *status.Report) bool {
		return slices.ContainsFunc(r.Events, func(e status.Event) bool {
			return strings.HasPrefix(e.What, "wmproxy: yamux ended: the token of this user was removed or replaced")
		})
	})
	l := s.WaitLog("the new link", message("the link for clients is another now"))
	text, err := os.ReadFile(l.String("file"))
	if err != nil {
		t.Fatal(err)
	}
	next := parsedLink(t, string(text))
	s.secrets = append(s.secrets, next.Secret)
	startClient(t, next.Text())
}

func TestHangupDoesNotEndClientOrProxy(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	c, proxy := startClient(t, s.Link), startProxy(t)
	echo := startEcho(t)
	for _, p := range []*socksProcess{c, proxy} {
		hangUp(p.process, "SIGHUP: there is nothing to read again")
		ping(t, associate(t, p.Socks()), echo)
	}
}

func TestHangupReloadsCertificates(t *testing.T) {
	t.Parallel()
	own := startServer(t)
	cert, key := filepath.Join(own.StateDir, "identity.crt"), filepath.Join(own.StateDir, "identity.key")
	s := startServer(t, "--cert", cert, "--key", key, "--advertise", "vpn.example.net")
	if l := hangUp(s.process, "certificate files were read again"); l.String("cert") != cert {
		t.Errorf("the server says %s", l.Raw)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if l := hangUp(s.process, "the changed certificate files cannot be used, the old ones stay"); l.Level != "ERROR" {
		t.Errorf("the server says %s", l.Raw)
	}
}
