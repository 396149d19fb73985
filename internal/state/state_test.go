package state

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// lockVariable makes the test binary a second process that locks a directory.
const lockVariable = "WMPROXY_TEST_LOCK"

func TestMain(m *testing.M) {
	if path := os.Getenv(lockVariable); path != "" {
		lockUntilEOF(path)
		return
	}
	goleak.VerifyTestMain(m)
}

// lockUntilEOF opens path, prints the outcome, and closes it when standard input ends.
func lockUntilEOF(path string) {
	dir, err := Open(path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("locked")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	_ = dir.Close()
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func open(t *testing.T, path string) *Dir {
	t.Helper()
	dir, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	return dir
}

func TestDirectoryAndFilesArePrivate(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no mode bits")
	}
	path := filepath.Join(t.TempDir(), "a", "b")
	dir := open(t, path)
	if err := dir.WriteFile("token", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	for _, made := range []string{path, filepath.Dir(path)} {
		if got := mode(t, made); got != 0o700 {
			t.Errorf("%s has mode %o", made, got)
		}
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("there are %d files, want token and lock", len(entries))
	}
	for _, entry := range entries {
		if got := mode(t, filepath.Join(path, entry.Name())); got != 0o600 {
			t.Errorf("%s has mode %o", entry.Name(), got)
		}
	}
}

func TestOpenNeedsPrivateOrEmptyDirectory(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no mode bits")
	}
	for _, test := range []struct {
		name   string
		mode   fs.FileMode
		filled bool
		want   fs.FileMode // 0 if refused
	}{
		{"private", 0o700, true, 0o700},
		{"readable by others", 0o755, true, 0o755},
		{"writable by the group", 0o770, true, 0},
		{"writable by all", 0o777, true, 0},
		{"shared and sticky", 0o777 | fs.ModeSticky, true, 0},
		{"empty and sticky", 0o777 | fs.ModeSticky, false, 0},
		{"empty and loose", 0o777, false, 0o700},
		{"empty and readable", 0o755, false, 0o700},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d")
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			if test.filled {
				if err := os.WriteFile(filepath.Join(path, "other"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(path, test.mode); err != nil {
				t.Fatal(err)
			}
			dir, err := Open(path)
			if (err != nil) != (test.want == 0) {
				t.Fatal(err)
			}
			if err != nil {
				if got := mode(t, path); got != test.mode.Perm() || !strings.Contains(err.Error(), path) {
					t.Errorf("refused with %v, mode %o", err, got)
				}
				return
			}
			defer dir.Close()
			if got := mode(t, path); got != test.want {
				t.Errorf("mode %o, want %o", got, test.want)
			}
		})
	}
}

func TestOpenOfFileFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), lockVariable+"="+path)
	stdin, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "locked\n" {
		t.Fatalf("the other process printed %q, %v", line, err)
	}

	_, err = Open(path)
	if !errors.Is(err, ErrLocked) {
		t.Errorf("got %v while it was locked", err)
	} else if text := err.Error(); !strings.Contains(text, path) || !strings.Contains(text, "--state-dir") ||
		!strings.Contains(text, fmt.Sprintf("(%d)", other.Process.Pid)) {
		t.Errorf("the error does not help: %s", text)
	}

	// A killed process leaves nothing locked.
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait()
	_ = stdin.Close()
	open(t, path)
}

func TestCloseReleasesTheLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	for range 3 {
		dir, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := Open(path); !errors.Is(err, ErrLocked) {
			t.Errorf("got %v and %v from a second Open", second, err)
		}
		if err := dir.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadersSeeWholeFiles(t *testing.T) {
	dir := open(t, filepath.Join(t.TempDir(), "d"))
	contents := []string{strings.Repeat("a", 10_000), strings.Repeat("b", 20_000)}
	if err := dir.WriteFile("f", []byte(contents[0])); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for _, content := range contents {
		writers.Go(func() {
			for range 50 {
				if err := dir.WriteFile("f", []byte(content)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		got, err := dir.ReadFile("f")
		if err != nil || string(got) != contents[0] && string(got) != contents[1] {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
	}
}

func TestFailedWriteLeavesOldContent(t *testing.T) {
	dir := open(t, filepath.Join(t.TempDir(), "d"))
	if err := dir.WriteFile("f", []byte("old")); err != nil {
		t.Fatal(err)
	}
	// A directory that is not empty has the name of the temporary file.
	if err := os.MkdirAll(dir.Join("f.tmp/x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := dir.WriteFile("f", []byte("new")); err == nil {
		t.Error("the write did not fail")
	}
	if got, err := dir.ReadFile("f"); string(got) != "old" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestTemporaryFileOfACrashIsReplaced(t *testing.T) {
	dir := open(t, filepath.Join(t.TempDir(), "d"))
	if err := os.WriteFile(dir.Join("f.tmp"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := dir.WriteFile("f", []byte("new")); err != nil {
		t.Fatal(err)
	}
	if got := mode(t, dir.Join("f")); got != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("mode %o", got)
	}
	if _, err := os.Stat(dir.Join("f.tmp")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestFilesAreBounded(t *testing.T) {
	dir := open(t, filepath.Join(t.TempDir(), "d"))
	if err := dir.WriteFile("f", make([]byte, maxFile)); err != nil {
		t.Error(err)
	}
	if data, err := dir.ReadFile("f"); err != nil || len(data) != maxFile {
		t.Errorf("read %d bytes, %v", len(data), err)
	}
	if err := dir.WriteFile("f", make([]byte, maxFile+1)); err == nil {
		t.Error("a file above the bound was written")
	}
	if err := os.WriteFile(dir.Join("g"), make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.ReadFile("g"); err == nil {
		t.Error("a file above the bound was read")
	}
	if _, err := dir.ReadFile("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file gave %v", err)
	}
}

func TestNamesOutsideDirectoryAreRefused(t *testing.T) {
	dir := open(t, filepath.Join(t.TempDir(), "d"))
	for _, name := range []string{"", ".", "..", "../x", "a/b", "/x", "lock", "x.tmp"} {
		if err := dir.WriteFile(name, nil); err == nil {
			t.Errorf("wrote %q", name)
		}
		if _, err := dir.ReadFile(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("read %q: %v", name, err)
		}
	}
}

func TestDefaultDirectoryDependsOnUser(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("paths are others on Windows")
	}
	home := t.TempDir()
	for _, test := range []struct {
		name string
		root bool
		env  map[string]string
		want string // empty: an error
	}{
		{"root", true, map[string]string{"HOME": "/root", "STATE_DIRECTORY": "/var/lib/x"}, "/var/lib/wmproxy/server"},
		{"XDG", false, map[string]string{"XDG_STATE_HOME": "/base", "HOME": "/home/u"}, "/base/wmproxy/server"},
		{"relative XDG", false, map[string]string{"XDG_STATE_HOME": "base", "HOME": "/home/u"}, "/home/u/.local/state/wmproxy/server"},
		{"home", false, map[string]string{"HOME": home, "STATE_DIRECTORY": "/var/lib/x"}, home + "/.local/state/wmproxy/server"},
		{"home that does not exist yet", false, map[string]string{"HOME": "/nonexistent"}, "/nonexistent/.local/state/wmproxy/server"},
		{"systemd and a home that does not exist", false, map[string]string{"HOME": "/nonexistent", "STATE_DIRECTORY": "/var/lib/x"}, "/var/lib/x/server"},
		{"systemd without a home", false, map[string]string{"STATE_DIRECTORY": "/var/lib/x"}, "/var/lib/x/server"},
		{"systemd's dynamic user", false, map[string]string{"HOME": "/", "STATE_DIRECTORY": "/var/lib/x:/var/lib/y"}, "/var/lib/x/server"},
		{"nothing", false, nil, ""},
	} {
		got, err := defaultDir("server", test.root, func(name string) string { return test.env[name] })
		if got != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%s: got %q, %v, want %q", test.name, got, err, test.want)
		}
	}
}

func TestExposedFilesAreMadePrivate(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no mode bits")
	}
	path := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"key": 0o644, "token": 0o660, "link": 0o600, "program": 0o755} {
		if err := os.WriteFile(filepath.Join(path, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(path, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	dir := open(t, path)
	exposed, err := dir.Protect("key", "absent", "token", "link")
	if diff := cmp.Diff([]string{"key", "token"}, exposed); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for name, want := range map[string]fs.FileMode{"key": 0o600, "token": 0o600, "link": 0o600, "program": 0o755} {
		if got := mode(t, dir.Join(name)); got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
	}
}

func TestDirectoryOfAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	path := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 4711, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "belongs to another user (4711, and this is 0)") {
		t.Errorf("got %v", err)
	}
}
