package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// checked runs wmproxy test, checks that it fails, and returns its output.
func checked(t *testing.T, c *socksProcess, args ...string) string {
	t.Helper()
	p := launch(t, nil, append([]string{"test", "--socks", c.Addr.String(), "--timeout", "5s"}, args...)...)
	if code := p.WaitExit(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	return p.stdout.String()
}

func TestRefusalByPolicyIsReportedAsSuch(t *testing.T) {
	t.Parallel()
	s := startServerIn(t, filepath.Join(t.TempDir(), "server"), "127.0.0.1:0") // does not allow loopback
	c := startClient(t, s.Link)
	echo := startEcho(t).String()
	out := checked(t, c, "--echo", echo)
	for _, want := range []string{
		"TCP: FAILED at CONNECT reply: the server replied 2 (not allowed by its rules); the server's rules forbid " + echo +
			"; choose another target, or allow it there (wmproxy server or proxy: --allow).\n",
		"UDP: FAILED at reply: no reply to 3 datagrams: the server's rules forbid " + echo +
			", as it told CONNECT, and it drops such datagrams without a word; choose another target, or allow it there (wmproxy server or proxy: --allow).\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "firewall") || strings.Contains(out, "--udp-from") {
		t.Errorf("it blames something else:\n%s", out)
	}
}

func TestUnresolvedNameIsLoggedByServer(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	c := startClient(t, s.Link)
	const name = "nowhere.invalid" // RFC 6761
	out := checked(t, c, "--echo", name+":7")
	if want := "the server has no way to " + name + ":7, or cannot resolve the name"; strings.Count(out, want) != 2 {
		t.Errorf("want twice %q in\n%s", want, out)
	}
	l := s.WaitLog("the name", message("a name does not resolve"))
	if l.Level != "INFO" || l.String("name") != name || l.String("user") != "wmproxy" || l.String("reason") == "" {
		t.Errorf("the server says %s", l.Raw)
	}
}
