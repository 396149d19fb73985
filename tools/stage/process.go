// Package stage starts the programs that the benchmarks measure, and describes the machine.
package stage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = 15 * time.Second
	startStep    = 20 * time.Millisecond
	// EndGrace is the time for a process to end after SIGTERM.
	EndGrace = 3 * time.Second
	// TailBytes bounds the part of a process's output in an error.
	TailBytes = 600
)

// Process is a running process.
type Process struct {
	cmd    *exec.Cmd
	output *os.File
	exited chan struct{}
	waiter sync.WaitGroup // waits for the process
}

// Start starts a program by means of begin, cmd.Start on some host, with its output in a file under dir.
func Start(cmd *exec.Cmd, dir string, begin func() error) (*Process, error) {
	output, err := os.CreateTemp(dir, filepath.Base(cmd.Path)+"-*.log")
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = output, output
	if err := begin(); err != nil {
		_ = output.Close()
		return nil, err
	}
	p := &Process{cmd: cmd, output: output, exited: make(chan struct{})}
	p.waiter.Go(func() {
		_ = cmd.Wait()
		close(p.exited)
	})
	return p, nil
}

// PID returns the process's identifier.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// End stops the process and waits for its end.
func (p *Process) End() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(EndGrace):
		_ = p.cmd.Process.Kill()
	}
	p.waiter.Wait()
	_ = p.output.Close()
}

// tail returns the end of the process's output.
func (p *Process) tail() []byte {
	b, err := os.ReadFile(p.output.Name())
	if err != nil {
		return nil
	}
	return bytes.TrimSpace(b[max(0, len(b)-TailBytes):])
}

// LastLine returns the last line of the process's output.
func (p *Process) LastLine() string {
	tail := p.tail()
	return string(tail[bytes.LastIndexByte(tail, '\n')+1:])
}

// Prints reports whether the process has printed a text.
func (p *Process) Prints(text string) bool {
	b, err := os.ReadFile(p.output.Name())
	return err == nil && bytes.Contains(b, []byte(text))
}

// Until calls ready until that returns true. It returns an error if the process ends first.
// The name is for an error.
func (p *Process) Until(ctx context.Context, name string, ready func() bool) error {
	deadline := time.Now().Add(startTimeout)
	for !ready() {
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended at once: %s", p.cmd.Path, p.tail())
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(startStep):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has no %s after %v: %s", p.cmd.Path, name, startTimeout, p.tail())
		}
	}
	return nil
}

// Write writes a file for a process and returns its path.
func Write(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}
