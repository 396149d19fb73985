//go:build unix

package main

import (
	"strings"
	"syscall"
	"testing"
)

func TestEndStopsTheProcess(t *testing.T) {
	for _, arrangement := range []string{shared, own} {
		p, err := start(t.TempDir(), arrangement, "sleep", "60")
		if err != nil {
			t.Skip("needs sleep:", err)
		}
		pid := p.PID()
		group, err := syscall.Getpgid(pid)
		if err != nil {
			t.Fatal(err)
		}
		if (group == pid) != (arrangement == own) {
			t.Errorf("%s: process %d is in group %d", arrangement, pid, group)
		}
		p.End()
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("%s: still running: %v", arrangement, err)
		}
	}
}

func TestEarlyEndIsAnErrorWithOutput(t *testing.T) {
	p, err := start(t.TempDir(), shared, "sh", "-c", "echo no such option >&2; exit 3")
	if err != nil {
		t.Skip("needs sh:", err)
	}
	defer p.End()
	err = p.Until(t.Context(), "open port", func() bool { return false })
	if err == nil || !strings.Contains(err.Error(), "no such option") {
		t.Errorf("got %v", err)
	}
}

func TestFreeAddressesDiffer(t *testing.T) {
	tunnel, socks, err := addresses()
	if err != nil || tunnel == socks || port(tunnel) == "" || !strings.HasPrefix(socks, "127.0.0.1:") {
		t.Errorf("got %s, %s and %v", tunnel, socks, err)
	}
}
