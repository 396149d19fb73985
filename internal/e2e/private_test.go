//go:build unix

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExposedTokenIsMadePrivate(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.Stop()
	token, other := filepath.Join(s.StateDir, "token"), filepath.Join(s.StateDir, "README.md")
	if err := os.Chmod(token, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	again := startServerIn(t, s.StateDir, s.Addr.String())
	warning := again.WaitLog("the exposed file", containing("could read this file until now"))
	if warning.Level != "WARN" || warning.String("file") != token || warning.String("secret") != token {
		t.Errorf("it says %s", warning.Raw)
	}
	info, err := os.Stat(token)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token has mode %v, %v; want 0600", info.Mode(), err)
	}
	if info, err = os.Stat(other); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("a file that is not ours has mode %v, %v; want 0644", info.Mode(), err)
	}
	if again.Link != s.Link {
		t.Error("the link has changed")
	}

	// A token that is written while the server runs.
	if err := os.Chmod(token, 0o644); err != nil {
		t.Fatal(err)
	}
	hangUp(again.process, "the tokens were read again")
	if info, err = os.Stat(token); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("after SIGHUP the token has mode %v, %v; want 0600", info.Mode(), err)
	}
}

func TestStateOfAnotherUserIsRefused(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		unable(t, "only root can give a directory away")
	}
	dir := filepath.Join(t.TempDir(), "server")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 4711, -1); err != nil {
		t.Fatal(err)
	}
	p := launch(t, nil, "server", "--listen", "127.0.0.1:0", "--state-dir", dir)
	if code := p.WaitExit(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	want := "wmproxy: the state directory " + dir + " belongs to another user (4711, and this is 0); run chown -R 0 on it or give another with --state-dir\n"
	if got := p.stderr.String(); !strings.HasSuffix(got, want) {
		t.Errorf("it says %q, want %q", got, want)
	}
}
