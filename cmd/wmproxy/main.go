// Command wmproxy is a SOCKS5 entrance on one machine and an exit with real
// sockets on another, joined by one tunnel. This package is flags, files and
// printing; it must not know how anything works inside.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"wmproxy/internal/loglimit"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// shutdownGrace bounds the orderly end after the first signal. Users are promised two
// seconds; the rest is for the process itself to exit.
const shutdownGrace = 1900 * time.Millisecond

// flushBound bounds the writing of the last lines.
const flushBound = 500 * time.Millisecond

func main() {
	p := &program{
		name:    commandName(os.Args[0]),
		getenv:  os.Getenv,
		stdout:  os.Stdout,
		stderr:  os.Stderr,
		console: isTerminal(os.Stderr),
		shown:   isTerminal(os.Stdout),
		hangups: make(chan os.Signal, 1),
	}
	log := &lines{w: os.Stderr}
	p.log = log
	if !p.console { // on a terminal each line appears at once
		log.delay = lineDelay
		p.stderr = log
	}
	signals := make(chan os.Signal, 2) // the second must not be lost while the first is served
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	code := p.untilSignal(signals, func(ctx context.Context) int {
		return p.run(ctx, os.Args[1:])
	})
	flushed := make(chan struct{})
	go func() { log.Flush(); close(flushed) }()
	select {
	case <-flushed:
	case <-time.After(flushBound): // nobody reads them
	}
	os.Exit(code)
}

// program is one run of the command line, with its environment and outputs.
type program struct {
	name           string // that a shell finds this program by
	getenv         func(string) string
	stdout, stderr io.Writer
	log            io.Writer         // of log lines; nil is stderr
	console        bool              // stderr is a terminal
	shown          bool              // stdout is a terminal, so that secrets written to it are not kept
	limited        *loglimit.Handler // of the logger; nil if there is none

	command string // name of the one to run; empty before arrange

	// fromEnv names the environment variable behind a flag that was not on the
	// command line, so that an error names what the user wrote.
	fromEnv map[string]string

	// hangups gets SIGHUP in commands that stay; nil in tests.
	hangups chan os.Signal

	// drain, if set, is called by SIGTERM before work is canceled; its channel
	// is closed when nothing is left to wait for.
	drain atomic.Pointer[func() <-chan struct{}]
}

// usageError is wrong usage: exit code 2.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usageErrorf(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

// errReported is a failure whose explanation has been printed already.
var errReported = errors.New("the failure has been printed")

// run carries out args, without the program's name, and returns the exit code.
func (p *program) run(ctx context.Context, args []string) int {
	app := p.app()
	arranged, err := p.arrange(app, args)
	if err == nil {
		err = app.RunContext(ctx, arranged)
	}
	if p.limited != nil {
		p.limited.Flush()
	}
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintln(p.stderr, "wmproxy:", err)
		return exitUsage
	case errors.Is(err, errReported):
		return exitFailed
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(p.stderr, "wmproxy: interrupted")
		return exitFailed
	default:
		fmt.Fprintln(p.stderr, "wmproxy:", err)
		return exitFailed
	}
}

// untilSignal runs work and returns its exit code. The first signal cancels its context,
// after the drain if that is set, which another signal cuts short. A second signal, or
// work that then takes longer than shutdownGrace, ends the wait with exit code 1.
func (p *program) untilSignal(signals <-chan os.Signal, work func(context.Context) int) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	result := make(chan int, 1)
	go func() { result <- work(ctx) }()
	select {
	case code := <-result:
		return code
	case s := <-signals:
		if drain := p.drain.Load(); s == syscall.SIGTERM && drain != nil {
			select {
			case code := <-result:
				return code
			case <-(*drain)():
			case <-signals:
			}
		}
		cancel()
	}
	grace := time.NewTimer(shutdownGrace)
	defer grace.Stop()
	select {
	case code := <-result:
		return code
	case <-signals:
		return exitFailed
	case <-grace.C:
		fmt.Fprintln(p.stderr, "wmproxy: not everything ended within two seconds of the signal; exiting without waiting for it")
		return exitFailed
	}
}
