package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Arrangements of the processes in sessions. If sched_autogroup_enabled is set, each session
// is a group of the scheduler, and groups preempt each other more eagerly than the processes
// of a group do.
const (
	shared = "shared" // all in one session, as started from one shell
	own    = "own"    // each in a session of its own (setsid), as services are
)

const (
	startTimeout = 10 * time.Second
	startStep    = 20 * time.Millisecond
	// endGrace is the time for a process to end after SIGTERM.
	endGrace = 3 * time.Second
	// tailBytes bounds the part of a process's output in an error.
	tailBytes = 600
)

// process is a running process.
type process struct {
	cmd    *exec.Cmd
	output *os.File
	exited chan struct{}
	waiter sync.WaitGroup // waits for the process
}

// start runs a program with its output in a file under dir.
func start(dir, arrangement, path string, args ...string) (*process, error) {
	return startIn(os.Environ(), dir, arrangement, path, args...)
}

// startIn is start with an environment.
func startIn(env []string, dir, arrangement, path string, args ...string) (*process, error) {
	output, err := os.CreateTemp(dir, filepath.Base(path)+"-*.log")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = output, output, env
	cmd.SysProcAttr = session(arrangement == own)
	if err := cmd.Start(); err != nil {
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

func (p *process) pid() int { return p.cmd.Process.Pid }

// end stops the process and waits for its end.
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

// tail returns the end of the process's output.
func (p *process) tail() string {
	b, err := os.ReadFile(p.output.Name())
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b[max(0, len(b)-tailBytes):]))
}

// until calls ready until that returns true. It returns an error if the process ends first.
// The name is for an error.
func (p *process) until(ctx context.Context, name string, ready func() bool) error {
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

// listens returns a function that reports whether a TCP connection to addr is accepted.
func listens(addr string) func() bool {
	return func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	}
}

// freeAddress returns a loopback address that is free for TCP and UDP.
func freeAddress() (string, error) {
	for range 20 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		addr := ln.Addr().String()
		udp, err := net.ListenPacket("udp", addr)
		_ = ln.Close()
		if err != nil {
			continue
		}
		_ = udp.Close()
		return addr, nil
	}
	return "", errors.New("no port is free for both TCP and UDP")
}

// output runs a program to its end and returns its standard output.
func output(ctx context.Context, arrangement, path string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = session(arrangement == own)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = endGrace
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		text := bytes.TrimSpace(stderr.Bytes())
		return nil, fmt.Errorf("%w: %s", err, text[:min(len(text), tailBytes)])
	}
	return b, nil
}

// write writes a file for a process and returns its path.
func write(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}
