package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"wmproxy/internal/testmain"
)

// leakChecked runs the tests and then looks for goroutines that they left.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func TestMain(m *testing.M) {
	testmain.Prepare()
	testscript.Main(leakChecked{m}, map[string]func(){"wmproxy": main})
}

// The scripts show exactly what a user types and sees.
func TestCommandLine(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_STATE_HOME", env.WorkDir+"/state")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // under -race, each of many processes would wait a second
			return nil
		},
	})
}

// testProgram is a program with an environment and its two outputs.
func testProgram(env map[string]string) (p *program, stdout, stderr *bytes.Buffer) {
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	return &program{
		name:   "wmproxy",
		getenv: func(name string) string { return env[name] },
		stdout: stdout, stderr: stderr,
	}, stdout, stderr
}

func TestTheFirstSignalEndsTheWorkInOrder(t *testing.T) {
	p, _, stderr := testProgram(nil)
	signals := make(chan os.Signal, 2)
	signals <- os.Interrupt
	code := p.untilSignal(signals, func(ctx context.Context) int {
		<-ctx.Done()
		return exitOK
	})
	if code != exitOK || stderr.Len() != 0 {
		t.Errorf("got exit code %d and %q", code, stderr)
	}
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, _ := testProgram(nil)
		signals := make(chan os.Signal, 2)
		signals <- os.Interrupt
		signals <- os.Interrupt
		release := make(chan int)
		start := time.Now()
		if code := p.untilSignal(signals, func(context.Context) int { return <-release }); code != exitFailed {
			t.Errorf("got exit code %d", code)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v", took)
		}
		close(release)
	})
}

func TestWorkThatDoesNotEndIsLeftAfterTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, stderr := testProgram(nil)
		signals := make(chan os.Signal, 2)
		signals <- os.Interrupt
		release := make(chan int)
		start := time.Now()
		if code := p.untilSignal(signals, func(context.Context) int { return <-release }); code != exitFailed {
			t.Errorf("got exit code %d", code)
		}
		if took := time.Since(start); took > 2*time.Second || took < time.Second {
			t.Errorf("it took %v", took)
		}
		if !strings.Contains(stderr.String(), "within two seconds") {
			t.Errorf("it said %q", stderr)
		}
		close(release)
	})
}

// SIGTERM leaves the work alone until the drain is over, or another signal comes.
func TestSIGTERMDrainsFirstAndAnotherSignalCutsItShort(t *testing.T) {
	for _, c := range []struct {
		name    string
		signals []os.Signal // one each second
		drains  bool
		ends    time.Duration // of the work's context, from the first signal on
	}{
		{"SIGTERM", []os.Signal{syscall.SIGTERM}, true, 20 * time.Second},
		{"SIGTERM, SIGTERM", []os.Signal{syscall.SIGTERM, syscall.SIGTERM}, true, time.Second},
		{"SIGTERM, SIGINT", []os.Signal{syscall.SIGTERM, os.Interrupt}, true, time.Second},
		{"SIGINT", []os.Signal{os.Interrupt}, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, _, _ := testProgram(nil)
				began := time.Now()
				drained := false
				drain := func() <-chan struct{} {
					drained = true
					over := make(chan struct{})
					time.AfterFunc(20*time.Second, func() { close(over) })
					return over
				}
				p.drain.Store(&drain)
				signals := make(chan os.Signal, 2)
				for i, s := range c.signals {
					time.AfterFunc(time.Duration(i)*time.Second, func() { signals <- s })
				}
				var ended time.Duration
				code := p.untilSignal(signals, func(ctx context.Context) int {
					<-ctx.Done()
					ended = time.Since(began)
					return exitOK
				})
				if code != exitOK || drained != c.drains || ended != c.ends {
					t.Errorf("exit code %d, drained %v, ended after %v; want 0, %v, %v", code, drained, ended, c.drains, c.ends)
				}
			})
		})
	}
}

func TestExitCodesTellUsageFromFailure(t *testing.T) {
	if e := fmt.Errorf("x: %w", usageErrorf("y")); !errors.As(e, new(*usageError)) {
		t.Error("a wrapped usage error is not one")
	}
	for _, test := range []struct {
		args []string
		want int
	}{
		{nil, exitOK},
		{[]string{"version"}, exitOK},
		{[]string{"bogus"}, exitUsage},
		{[]string{"client", "--link-file", "/nonexistent/link"}, exitFailed},
	} {
		p, stdout, stderr := testProgram(nil)
		if code := p.run(t.Context(), test.args); code != test.want {
			t.Errorf("%q: exit code %d, want %d", test.args, code, test.want)
		}
		if test.want == exitOK && stderr.Len() > 0 || test.want != exitOK && stdout.Len() > 0 {
			t.Errorf("%q: standard output %q, standard error %q", test.args, stdout, stderr)
		}
	}
}

func TestInterruptedLoadSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p, _, stderr := testProgram(nil)
	code := p.run(ctx, strings.Fields("bench tcp --socks 127.0.0.1:1 --target 127.0.0.1:9"))
	if code != exitFailed || stderr.String() != "wmproxy: interrupted\n" {
		t.Errorf("exit code %d and %q", code, stderr)
	}
}
