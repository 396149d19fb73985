package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// serviceUser is the id of a user without a home directory.
const serviceUser = 4711

// launchAsService starts wmproxy as systemd does for a service with DynamicUser, in new
// namespaces of the kinds given (CLONE_NEW*).
func launchAsService(t *testing.T, namespaces uintptr, env []string, args ...string) *process {
	t.Helper()
	if os.Geteuid() != 0 {
		unable(t, "only root can start a process as another user")
	}
	// The directories of the program and of tests are accessible to root only.
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "wmproxy")
	if err := os.WriteFile(own, content, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(own, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: serviceUser, Gid: serviceUser}, Cloneflags: namespaces}
	return launchCommand(t, append([]string{"HOME=/", "XDG_STATE_HOME="}, env...), cmd, args)
}

func TestServiceKeepsStateInStateDirectory(t *testing.T) {
	t.Parallel()
	for _, home := range []string{"/", "/nonexistent"} { // with DynamicUser, and by Debian's adduser --system
		t.Run("HOME="+home, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(dir, serviceUser, serviceUser); err != nil && os.Geteuid() == 0 {
				t.Fatal(err)
			}
			p := launchAsService(t, 0, []string{"HOME=" + home, "STATE_DIRECTORY=" + dir}, "server", "--listen", "127.0.0.1:0")
			p.WaitLog("listening", message("listening"))
			serverBehind(t, p)
			if _, err := os.Stat(filepath.Join(dir, "server", "token")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPrivilegedPortErrorNamesItsFlag(t *testing.T) {
	t.Parallel()
	// In containers any user may listen on port 80. In a new network namespace not.
	p := launchAsService(t, syscall.CLONE_NEWNET, nil, "proxy", "--open", "--bind", "0.0.0.0:80")
	if code := p.WaitExit(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	const want = "wmproxy: cannot listen on TCP 0.0.0.0:80: this user may not have that port; give one above 1023 with --bind, or the user the right (CAP_NET_BIND_SERVICE)\n"
	if got := p.stderr.String(); !strings.HasSuffix(got, want) {
		t.Errorf("it says %q, want %q", got, want)
	}
}

func TestServiceWithoutStateGetsAdvice(t *testing.T) {
	t.Parallel()
	p := launchAsService(t, 0, nil, "server", "--listen", "127.0.0.1:0")
	if code := p.WaitExit(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	const want = "wmproxy: there is no home directory to keep state in; give --state-dir DIR, or StateDirectory= in a systemd unit\n"
	if got := p.stderr.String(); !strings.HasSuffix(got, want) {
		t.Errorf("it says %q, want %q", got, want)
	}
}
