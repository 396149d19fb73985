package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal returns the two sides of a new terminal: the user's, and the one for the
// program's standard output.
func openTerminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		unable(t, err.Error())
	}
	t.Cleanup(func() { user.Close() })
	if err := unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		unable(t, err.Error())
	}
	t.Cleanup(func() { program.Close() })
	return user, program
}

// A terminal does not store the link. Other kinds of standard output do.
func TestLinkIsPrintedOnlyOnTerminals(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "server")
	s := startServerIn(t, dir, "127.0.0.1:0")
	link := s.Link
	s.Stop()
	if text := s.stdout.String(); strings.Contains(text, "wmproxy://") {
		t.Error("the link was printed to a pipe")
	} else if !strings.Contains(text, filepath.Join(dir, "client.link")) || !strings.Contains(text, program+" client --link-file client.link") {
		t.Errorf("it printed %q", text)
	}

	user, terminal := openTerminal(t)
	cmd := exec.Command("./wmproxy", "server", "--listen", s.Addr.String(), "--state-dir", dir)
	cmd.Dir = filepath.Dir(program)
	cmd.Env, cmd.Stdout, cmd.Stderr = environment(t), terminal, io.Discard
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	terminal.Close() // so that the user's side is closed with the process
	shown := newOutput()
	copied := make(chan struct{})
	go func() { _, _ = io.Copy(shown, user); close(copied) }()
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		<-copied
	}()
	want := "./wmproxy client '" + link + "'"
	deadline := time.After(waitTimeout)
	for text, more := shown.read(); !strings.Contains(text, want); text, more = shown.read() {
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("the terminal shows %q, want %q", text, want)
		}
	}
}
