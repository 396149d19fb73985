package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Names and addresses of dnsmasq's answers.
const (
	dnsName    = "host.wmproxy.test"
	dnsAddress = "192.0.2.77" // for documentation, RFC 5737
)

func TestTestCommandAsksDNSServer(t *testing.T) {
	t.Parallel()
	dns := startDnsmasq(t)
	overEach(t, everyKind, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, []string{"--user", "alice", "--pass", "secret-of-alice"})
		check := func(args ...string) (exitCode int, out string) {
			t.Helper()
			p := launch(t, nil, append([]string{"test", "--socks", tu.Entry.Addr.String(), "--dns", dns, "--domain", dnsName, "--timeout", "5s"}, args...)...)
			code := p.WaitExit()
			if p.stderr.String() != "" {
				t.Errorf("%v: standard error has %q", args, p.stderr)
			}
			return code, p.stdout.String()
		}

		code, out := check("-u", "alice", "-p", "secret-of-alice", "-a", dnsAddress)
		if code != 0 || !strings.Contains(out, "\nTCP: OK\n") || !strings.Contains(out, "\nUDP: OK\n") {
			t.Errorf("exit code %d and\n%s", code, out)
		}
		if n := strings.Count(out, dnsName+" is ["+dnsAddress+"]"); n != 2 {
			t.Errorf("it tells the address %d times, want 2:\n%s", n, out)
		}

		code, out = check("-u", "alice", "-p", "secret-of-alice", "-a", "192.0.2.78")
		if code != 1 || strings.Contains(out, "OK") || strings.Count(out, "the answer is not the expected address") != 2 {
			t.Errorf("another address: exit code %d and\n%s", code, out)
		}

		code, out = check("-u", "alice", "-p", "not-alices")
		if code != 1 || strings.Contains(out, "OK") || strings.Count(out, "FAILED at authentication") != 2 {
			t.Errorf("a wrong password: exit code %d and\n%s", code, out)
		}
	})
}

// startDnsmasq starts a DNS server on loopback and returns its address.
func startDnsmasq(t *testing.T) string {
	t.Helper()
	path := debian(t, "dnsmasq", "dnsmasq-base")
	port := freePorts(t, 1)
	log := newOutput()
	cmd := exec.Command(path,
		"--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces",
		"--listen-address=127.0.0.1", fmt.Sprintf("--port=%d", port), "--address=/"+dnsName+"/"+dnsAddress)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = cmd.Wait(); close(exited) })
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		wg.Wait()
	})
	for deadline := time.After(waitTimeout); ; {
		text, more := log.read()
		if strings.Contains(text, "started, version") {
			return fmt.Sprintf("127.0.0.1:%d", port)
		}
		select {
		case <-more:
		case <-exited:
			t.Fatalf("dnsmasq ended: %s", log)
		case <-deadline:
			t.Fatalf("dnsmasq does not start: %s", log)
		}
	}
}
