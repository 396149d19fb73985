//go:build linux

package main

import (
	"context"
	"os/exec"
	"syscall"

	"wmproxy/internal/netlab"
	"wmproxy/tools/stage"
)

// start runs a program on a host, with its output in a file under dir.
func start(h *netlab.Host, dir, program string, args ...string) (*stage.Process, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.SysProcAttr = dir, attributes()
	return stage.Start(cmd, dir, func() error { return h.In(cmd.Start) })
}

// attributes put a process into a session of its own, as services are, and end it with
// this program, however that ends.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
}

// started returns p once it has printed a text. If it does not, it is ended.
func started(ctx context.Context, p *stage.Process, err error, text string) (*stage.Process, error) {
	if err != nil {
		return nil, err
	}
	if err := p.Until(ctx, "line with "+text, func() bool { return p.Prints(text) }); err != nil {
		p.End()
		return nil, err
	}
	return p, nil
}
