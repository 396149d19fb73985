package certs

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// waitLimit bounds the wait for a notification of the file system.
const waitLimit = 10 * time.Second

// logLines passes each message of a log to a test.
type logLines chan string

func (l logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l logLines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l logLines) WithGroup(string) slog.Handler            { return l }
func (l logLines) Handle(_ context.Context, r slog.Record) error {
	l <- r.Level.String() + " " + r.Message
	return nil
}

const (
	sawGood = "INFO certificate files were read again"
	sawBad  = "ERROR the changed certificate files cannot be used, the old ones stay"
)

func (l logLines) next(t *testing.T) string {
	t.Helper()
	select {
	case line := <-l:
		return line
	case <-time.After(waitLimit):
		t.Fatal("nothing was logged")
		return ""
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func writePair(t *testing.T, dir string, cert *tls.Certificate) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM := pemOf(t, cert)
	write(t, filepath.Join(dir, "tls.crt"), certPEM)
	write(t, filepath.Join(dir, "tls.key"), keyPEM)
}

// replaceLink points the symlink at path to target in one step.
func replaceLink(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func watchFiles(t *testing.T, dir string) (*Files, logLines) {
	t.Helper()
	lines := make(logLines, 64)
	files, err := ServerFromFiles(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), slog.New(lines))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := files.Close(); err != nil {
			t.Error(err)
		}
	})
	return files, lines
}

func wantCurrent(t *testing.T, files *Files, cert *tls.Certificate) {
	t.Helper()
	if PinOf(files.Certificate().Leaf) != PinOf(cert.Leaf) {
		t.Error("another certificate is in use")
	}
}

func TestChangedFilesAreUsedAtNextHandshake(t *testing.T) {
	dir := t.TempDir()
	old, renewed := identity(t).Certificate(), identity(t).Certificate()
	writePair(t, dir, old)
	files, lines := watchFiles(t, dir)
	wantCurrent(t, files, old)

	writePair(t, dir, renewed)
	// A slow disk may show the half-written pair first.
	for lines.next(t) != sawGood {
	}
	wantCurrent(t, files, renewed)

	pin := PinOf(renewed.Leaf)
	if _, _, serverErr, clientErr := handshake(t, ServerConfig(files.Certificate, alpn), ClientConfig(&pin, "h", alpn)); serverErr != nil || clientErr != nil {
		t.Errorf("got %v, %v", serverErr, clientErr)
	}
}

func TestHalfWrittenPairKeepsTheOldOne(t *testing.T) {
	dir := t.TempDir()
	old, renewed := identity(t).Certificate(), identity(t).Certificate()
	writePair(t, dir, old)
	files, lines := watchFiles(t, dir)
	certPEM, keyPEM := pemOf(t, renewed)

	for name, step := range map[string]func(){
		"a certificate without its key": func() { write(t, filepath.Join(dir, "tls.crt"), certPEM) },
		"half a certificate":            func() { write(t, filepath.Join(dir, "tls.crt"), certPEM[:len(certPEM)/2]) },
		"an empty file":                 func() { write(t, filepath.Join(dir, "tls.crt"), nil) },
		"no file":                       func() { _ = os.Remove(filepath.Join(dir, "tls.crt")) },
	} {
		step()
		if line := lines.next(t); line != sawBad {
			t.Errorf("%s: %s", name, line)
		}
		wantCurrent(t, files, old)
	}

	write(t, filepath.Join(dir, "tls.crt"), certPEM)
	write(t, filepath.Join(dir, "tls.key"), keyPEM)
	for lines.next(t) != sawGood {
	}
	wantCurrent(t, files, renewed)
}

func TestSwappedSymlinksAreNoticed(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("symlinks need a privilege on Windows")
	}
	old, renewed := identity(t).Certificate(), identity(t).Certificate()

	t.Run("each file, as certbot does", func(t *testing.T) {
		base := t.TempDir()
		writePair(t, filepath.Join(base, "archive", "1"), old)
		writePair(t, filepath.Join(base, "archive", "2"), renewed)
		live := filepath.Join(base, "live")
		if err := os.Mkdir(live, 0o700); err != nil {
			t.Fatal(err)
		}
		point := func(version string) {
			for _, name := range []string{"tls.crt", "tls.key"} {
				replaceLink(t, filepath.Join("..", "archive", version, name), filepath.Join(live, name))
			}
		}
		point("1")
		files, lines := watchFiles(t, live)
		point("2")
		for lines.next(t) != sawGood {
		}
		wantCurrent(t, files, renewed)
	})

	t.Run("the directory, as Kubernetes does", func(t *testing.T) {
		base := t.TempDir()
		writePair(t, filepath.Join(base, "..1"), old)
		writePair(t, filepath.Join(base, "..2"), renewed)
		replaceLink(t, "..1", filepath.Join(base, "..data"))
		for _, name := range []string{"tls.crt", "tls.key"} {
			replaceLink(t, filepath.Join("..data", name), filepath.Join(base, name))
		}
		files, lines := watchFiles(t, base)
		replaceLink(t, "..2", filepath.Join(base, "..data"))
		for lines.next(t) != sawGood {
		}
		wantCurrent(t, files, renewed)
	})

	t.Run("the target, in place", func(t *testing.T) {
		base := t.TempDir()
		writePair(t, filepath.Join(base, "real"), old)
		named := filepath.Join(base, "named")
		if err := os.Mkdir(named, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"tls.crt", "tls.key"} {
			replaceLink(t, filepath.Join(base, "real", name), filepath.Join(named, name))
		}
		files, lines := watchFiles(t, named)
		writePair(t, filepath.Join(base, "real"), renewed)
		for lines.next(t) != sawGood {
		}
		wantCurrent(t, files, renewed)
	})
}

func TestUnusablePairAtStartIsAnError(t *testing.T) {
	dir := t.TempDir()
	writePair(t, dir, identity(t).Certificate())
	certPEM, _ := pemOf(t, identity(t).Certificate())
	write(t, filepath.Join(dir, "tls.crt"), certPEM)
	for _, file := range []string{"tls.crt", "none"} {
		if _, err := ServerFromFiles(filepath.Join(dir, file), filepath.Join(dir, "tls.key"), slog.New(make(logLines, 8))); err == nil {
			t.Errorf("%s was taken", file)
		}
	}
}

func TestReloadLogsTheOutcome(t *testing.T) {
	dir := t.TempDir()
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	writePair(t, dir, id.Certificate())
	files, lines := watchFiles(t, dir)
	files.Reload()
	if got := lines.next(t); got != sawGood {
		t.Errorf("same files: logged %q", got)
	}
	if err := os.Remove(filepath.Join(dir, "tls.key")); err != nil {
		t.Fatal(err)
	}
	if got := lines.next(t); got != sawBad {
		t.Errorf("missing key: logged %q", got)
	}
	files.Reload()
	if got := lines.next(t); got != sawBad {
		t.Errorf("missing key, asked again: logged %q", got)
	}
	if files.Certificate() == nil {
		t.Error("the last good pair is gone")
	}
}
