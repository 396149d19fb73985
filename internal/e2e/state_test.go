package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wmproxy/internal/link"
)

func parsedLink(t testing.TB, text string) link.Link {
	t.Helper()
	l, err := link.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestRestartKeepsIdentityAndToken(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.Stop()
	again := startServerIn(t, s.StateDir, s.Addr.String())
	if again.Link != s.Link {
		t.Error("the link has changed")
	}
	again.Stop()

	// To delete the token's file rotates the token and nothing else.
	if err := os.Remove(filepath.Join(s.StateDir, "token")); err != nil {
		t.Fatal(err)
	}
	rotated := startServerIn(t, s.StateDir, s.Addr.String())
	before, after := parsedLink(t, s.Link), parsedLink(t, rotated.Link)
	if after.Secret == before.Secret {
		t.Error("the token is still the old one")
	}
	if *after.Pin != *before.Pin || after.Name != before.Name {
		t.Error("more than the secret has changed")
	}
	client := launch(t, nil, "client", "--state-dir", t.TempDir()+"/client", "--listen", "127.0.0.1:0", s.Link)
	if code := client.WaitExit(); code != 1 {
		t.Errorf("the old link: exit code %d, want 1", code)
	}
	startClient(t, rotated.Link)
}

func TestStateDirectoryIsPrivate(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for _, test := range []struct {
		path string
		want os.FileMode
	}{
		{s.StateDir, 0o700},
		{filepath.Join(s.StateDir, "client.link"), 0o600},
		{filepath.Join(s.StateDir, "token"), 0o600},
		{filepath.Join(s.StateDir, "identity.key"), 0o600},
	} {
		info, err := os.Stat(test.path)
		if err != nil {
			t.Error(err)
		} else if got := info.Mode().Perm(); got != test.want {
			t.Errorf("%s has mode %o, want %o", filepath.Base(test.path), got, test.want)
		}
	}
	text, err := os.ReadFile(filepath.Join(s.StateDir, "client.link"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(text)) != s.Link {
		t.Error("client.link is not the link that was printed")
	}
	// A client reads it from there.
	c := startEntrance(t, []string{
		"client", "--state-dir", t.TempDir() + "/client",
		"--link-file", filepath.Join(s.StateDir, "client.link"),
	}, "--listen")
	c.waitUp()
}

func TestStateDirectoryIsForOneProcess(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	second := launch(t, nil, "server", "--listen", "127.0.0.1:0", "--state-dir", s.StateDir)
	if code := second.WaitExit(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	text := second.stderr.String()
	if !strings.Contains(text, "in use by another process") || !strings.Contains(text, "--state-dir") {
		t.Errorf("it says %q", text)
	}
	startClient(t, s.Link) // the first one still works
}
