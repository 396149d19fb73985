package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// SocketName is the socket's name in the state directory.
	SocketName = "status.sock"

	// maxConns bounds the connections that have not read their answer; beyond it the
	// oldest is closed. answerTime bounds the time to read it, which takes milliseconds.
	maxConns   = 8
	answerTime = 2 * time.Second

	// acceptPause is the pause after an error of accept, such as a lack of descriptors.
	acceptPause = 100 * time.Millisecond

	// probeTime bounds the attempt to connect to an existing socket.
	probeTime = time.Second

	// maxPath bounds the path of a socket, in bytes without the final NUL.
	maxPath = len(syscall.RawSockaddrUnix{}.Path) - 1
)

// Serve serves the socket in the state directory dir, if that is not empty, until stop is
// called, which waits for the end. It reads nothing and sends the report as one JSON
// document to each connection before it closes it. If the socket cannot be made, Serve
// logs a warning, and the process goes on without it.
func Serve(dir string, report func() Report, log *slog.Logger) (stop func()) {
	if dir == "" {
		return func() {}
	}
	path := filepath.Join(dir, SocketName)
	ln, err := listen(path)
	if err != nil {
		log.Warn("wmproxy status will not work for this process", slog.Any("reason", err))
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{ctx: ctx, ln: ln, report: report}
	accepting := make(chan struct{})
	go func() {
		s.accept()
		close(accepting)
	}()
	return sync.OnceFunc(func() {
		_ = os.Remove(path)
		cancel()
		ln.Close()
		<-accepting
		s.closeAll()
		s.wg.Wait()
	})
}

// server serves one socket.
type server struct {
	ctx    context.Context
	ln     net.Listener
	report func() Report
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn // that have not read their answer, oldest first
}

// accept makes one report at a time, so that many requests use at most one processor.
func (s *server) accept() {
	for {
		conn, err := s.ln.Accept()
		if s.ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			select {
			case <-time.After(acceptPause):
			case <-s.ctx.Done():
			}
			continue
		}
		document, err := json.Marshal(s.report())
		if err != nil {
			conn.Close() // a report always marshals
			continue
		}
		s.enter(conn)
		s.wg.Go(func() {
			defer s.leave(conn)
			_ = conn.SetDeadline(time.Now().Add(answerTime))
			_, _ = conn.Write(append(document, '\n'))
		})
		runtime.Gosched() // so that the write begins before a flood makes this the oldest connection
	}
}

func (s *server) enter(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) == maxConns {
		s.conns[0].Close()
		s.conns = slices.Delete(s.conns, 0, 1)
	}
	s.conns = append(s.conns, conn)
}

func (s *server) leave(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = slices.DeleteFunc(s.conns, func(c net.Conn) bool { return c == conn })
}

// closeAll closes the connections after accept has returned.
func (s *server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		conn.Close()
	}
}

// listen makes the socket at path. Only its owner can use it, at any time.
func listen(path string) (net.Listener, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	if err := checkFree(path); err != nil {
		return nil, err
	}
	ln, err := bind(path)
	if err != nil {
		return nil, fmt.Errorf("cannot make the socket %s: %w", path, err)
	}
	return ln, nil
}

func checkPath(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("the socket's path %s has %d bytes and the system takes %d; choose a shorter --state-dir", path, len(path), maxPath)
	}
	return nil
}

// checkFree returns an error unless path is free or a socket left behind by a process
// that was killed.
func checkFree(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is not a socket; move it away", path)
	}
	conn, err := net.DialTimeout("unix", path, probeTime)
	if err == nil {
		conn.Close()
		return fmt.Errorf("another process answers on %s", path)
	}
	if !errors.Is(err, errRefused) {
		return fmt.Errorf("cannot tell whether another process answers on %s: %w", path, err)
	}
	return nil
}
