package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"wmproxy/tools/stage"
)

// Arrangements of the processes in sessions. If sched_autogroup_enabled is set, each session
// is a group of the scheduler, and groups preempt each other more eagerly than the processes
// of a group do.
const (
	shared = "shared" // all in one session, as started from one shell
	own    = "own"    // each in a session of its own (setsid), as services are
)

// start runs a program with its output in a file under dir.
func start(dir, arrangement, path string, args ...string) (*stage.Process, error) {
	return startIn(os.Environ(), dir, arrangement, path, args...)
}

// startIn is start with an environment.
func startIn(env []string, dir, arrangement, path string, args ...string) (*stage.Process, error) {
	cmd := exec.Command(path, args...)
	cmd.Env = env
	cmd.SysProcAttr = session(arrangement == own)
	return stage.Start(cmd, dir, cmd.Start)
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
	cmd.WaitDelay = stage.EndGrace
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		text := bytes.TrimSpace(stderr.Bytes())
		return nil, fmt.Errorf("%w: %s", err, text[:min(len(text), stage.TailBytes)])
	}
	return b, nil
}
