//go:build unix

package status

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wmproxy/internal/testmain"
)

func TestMain(m *testing.M) { testmain.Run(m) }

// stateDir returns a temporary directory with a path that is short enough for a socket.
func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wmproxy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func ofPID(pid int) func() Report {
	return func() Report { return Report{Role: Client, PID: pid} }
}

// serve calls Serve and returns its log.
func serve(t *testing.T, dir string, report func() Report) (stop func(), log *bytes.Buffer) {
	t.Helper()
	log = new(bytes.Buffer)
	stop = Serve(dir, report, slog.New(slog.NewTextHandler(log, nil)))
	t.Cleanup(stop)
	return stop, log
}

func wantPID(t *testing.T, dir string, want int) {
	t.Helper()
	r, document, err := Ask(t.Context(), dir)
	if err != nil || r.PID != want || !json.Valid(document) {
		t.Errorf("process %d answers with %q and %v, want %d", r.PID, document, err, want)
	}
}

func wantNobody(t *testing.T, dir string) {
	t.Helper()
	if _, _, err := Ask(t.Context(), dir); !errors.Is(err, ErrNobody) {
		t.Errorf("got %v, want %v", err, ErrNobody)
	}
}

func TestAskReturnsTheReport(t *testing.T) {
	dir := stateDir(t)
	wantNobody(t, dir)
	wantNobody(t, filepath.Join(dir, "absent"))
	stop, log := serve(t, dir, ofPID(17))
	for range 20 {
		wantPID(t, dir, 17)
	}
	stop()
	wantNobody(t, dir)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 || log.Len() != 0 {
		t.Errorf("left over: %v, %v, %s", entries, err, log)
	}
}

func TestEmptyDirectoryMakesNoSocket(t *testing.T) {
	_, log := serve(t, "", func() Report { t.Error("asked"); return Report{} })
	if log.Len() != 0 {
		t.Errorf("logged %s", log)
	}
}

func TestSocketIsPrivateWhateverTheUmask(t *testing.T) {
	dir := stateDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	serve(t, dir, ofPID(1))
	info, err := os.Lstat(filepath.Join(dir, SocketName))
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := os.Lstat(filepath.Join(dir, ".status")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the private directory remains: %v", err)
	}
}

// leaveSocket leaves a socket behind as a killed process does.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
}

func TestUnansweredSocketIsReplaced(t *testing.T) {
	dir := stateDir(t)
	leaveSocket(t, filepath.Join(dir, SocketName))
	if err := os.Mkdir(filepath.Join(dir, ".status"), 0o700); err != nil {
		t.Fatal(err)
	}
	leaveSocket(t, filepath.Join(dir, ".status", "s"))
	wantNobody(t, dir)
	_, log := serve(t, dir, ofPID(2))
	wantPID(t, dir, 2)
	if log.Len() != 0 {
		t.Errorf("logged %s", log)
	}
}

func TestObstacleIsLoggedAndStays(t *testing.T) {
	t.Run("another process", func(t *testing.T) {
		dir := stateDir(t)
		serve(t, dir, ofPID(1))
		stop, log := serve(t, dir, ofPID(2))
		wantPID(t, dir, 1)
		stop()
		wantPID(t, dir, 1)
		if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "another process answers on") {
			t.Errorf("logged %s", log)
		}
	})
	t.Run("a file", func(t *testing.T) {
		dir := stateDir(t)
		path := filepath.Join(dir, SocketName)
		if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		stop, log := serve(t, dir, ofPID(1))
		stop()
		if b, err := os.ReadFile(path); err != nil || string(b) != "mine" || !strings.Contains(log.String(), "is not a socket; move it away") {
			t.Errorf("%q, %v, logged %s", b, err, log)
		}
	})
	t.Run("a long path", func(t *testing.T) {
		dir := filepath.Join(stateDir(t), strings.Repeat("d", 100))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, log := serve(t, dir, ofPID(1))
		if !strings.Contains(log.String(), "choose a shorter --state-dir") {
			t.Errorf("logged %s", log)
		}
		if _, _, err := Ask(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "choose a shorter --state-dir") {
			t.Errorf("Ask returned %v", err)
		}
	})
}

func TestPathMayHaveSystemsMaximalLength(t *testing.T) {
	dir := stateDir(t)
	for _, test := range []struct {
		length int
		ok     bool
	}{{maxPath, true}, {maxPath + 1, false}} {
		long := filepath.Join(dir, strings.Repeat("d", test.length-len(dir)-len(SocketName)-2))
		if err := os.Mkdir(long, 0o700); err != nil {
			t.Fatal(err)
		}
		_, log := serve(t, long, ofPID(3))
		if ok := log.Len() == 0; ok != test.ok {
			t.Errorf("%d bytes: %s", test.length, log)
		}
		if test.ok {
			wantPID(t, long, 3)
		}
	}
}

// large returns a report that does not fit into the socket's buffers.
func large() Report {
	return Report{PID: 4, Listen: strings.Repeat("x", 300<<10)}
}

func TestSilentReadersDelayNobody(t *testing.T) {
	dir := stateDir(t)
	stop, log := serve(t, dir, large)
	path := filepath.Join(dir, SocketName)
	dial := func() net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	for range 3 * maxConns {
		dial() // never reads
	}
	junk := make([]byte, 1<<16)
	rand.Read(junk)
	for range maxConns {
		conn := dial()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Millisecond))
		_, _ = conn.Write(junk)
		conn.Close()
	}
	began := time.Now()
	wantPID(t, dir, 4)
	// It takes milliseconds unless the machine is busy. To wait for all of them would take three answerTimes.
	if took := time.Since(began); took > 2*answerTime {
		t.Errorf("took %v behind %d silent readers", took, 3*maxConns)
	}
	dial()
	began = time.Now()
	stop() // must not wait for silent readers
	if took := time.Since(began); took > time.Second || log.Len() > 0 {
		t.Errorf("stop took %v, logged %s", took, log)
	}
}

func TestReportsAreMadeOneAtATime(t *testing.T) {
	dir := stateDir(t)
	var making atomic.Int32
	serve(t, dir, func() Report {
		if n := making.Add(1); n != 1 {
			t.Errorf("%d reports at once", n)
		}
		defer making.Add(-1)
		runtime.Gosched()
		return Report{PID: 5}
	})
	var wg sync.WaitGroup
	for range maxConns {
		wg.Go(func() { wantPID(t, dir, 5) })
	}
	wg.Wait()
}

func TestMalformedReportIsAnError(t *testing.T) {
	for _, answer := range []string{"hello\n", "{", "[1]", `{"pid":"x"}`} {
		dir := stateDir(t)
		ln, err := net.Listen("unix", filepath.Join(dir, SocketName))
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			if conn, err := ln.Accept(); err == nil {
				_, _ = io.WriteString(conn, answer)
				conn.Close()
			}
		}()
		if _, _, err := Ask(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "is not a report") {
			t.Errorf("%q: %v", answer, err)
		}
		ln.Close()
		<-served
	}
}

func TestSilentProcessIsReportedAsStopped(t *testing.T) {
	dir := stateDir(t)
	ln, err := net.Listen("unix", filepath.Join(dir, SocketName)) // the system accepts connections, nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := Ask(ctx, dir); err == nil || !strings.Contains(err.Error(), "does not answer within 10s; check that it is not stopped") {
		t.Errorf("got %v", err)
	}
}
