//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"wmproxy/internal/netlab"
)

const (
	startTimeout = 15 * time.Second
	startStep    = 10 * time.Millisecond
	// endGrace is how long a process has after SIGTERM.
	endGrace = time.Second
	// tailBytes bounds what an error shows of a process's output.
	tailBytes = 600
)

// process is one that we started on a host.
type process struct {
	cmd    *exec.Cmd
	output *os.File
	exited chan struct{}
	waiter sync.WaitGroup
}

// start runs a program on a host, with its output in a file under dir.
func start(h *netlab.Host, dir, program string, args ...string) (*process, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, err
	}
	output, err := os.CreateTemp(dir, filepath.Base(path)+"-*.log")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, output, output
	cmd.SysProcAttr = attributes()
	if err := h.In(cmd.Start); err != nil {
		_ = output.Close()
		return nil, err
	}
	p := &process{cmd: cmd, output: output, exited: make(chan struct{})}
	p.waiter.Go(func() {
		_ = cmd.Wait()
		close(p.exited)
	})
	return p, nil
}

// attributes put a process into a session of its own, as services are, and end it with
// this program, however that ends.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// end ends the process and waits for it.
func (p *process) end() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(endGrace):
		_ = p.cmd.Process.Kill()
	}
	p.waiter.Wait()
	_ = p.output.Close()
}

// tail is the end of the process's output.
func (p *process) tail() string {
	b, err := os.ReadFile(p.output.Name())
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b[max(0, len(b)-tailBytes):]))
}

// lastLine is the last line of the process's output.
func (p *process) lastLine() string {
	tail := p.tail()
	return tail[strings.LastIndexByte(tail, '\n')+1:]
}

// until calls ready until it returns true; it gives up when the process ends.
func (p *process) until(ctx context.Context, what string, ready func() bool) error {
	deadline := time.Now().Add(startTimeout)
	for !ready() {
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended: %s", p.cmd.Path, p.tail())
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(startStep):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has no %s after %v: %s", p.cmd.Path, what, startTimeout, p.tail())
		}
	}
	return nil
}

// prints reports whether the process has written some text.
func (p *process) prints(text string) func() bool {
	return func() bool {
		b, err := os.ReadFile(p.output.Name())
		return err == nil && bytes.Contains(b, []byte(text))
	}
}

// exists reports whether a file does.
func exists(path string) func() bool {
	return func() bool { _, err := os.Stat(path); return err == nil }
}

// write makes a file for a process.
func write(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}
