package probe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"wmproxy/socks"
)

// streamTimeout bounds Stream, connecting included.
const streamTimeout = 60 * time.Second

// errCutShort is returned if a stream ends before everything has come back.
var errCutShort = errors.New("the stream was cut short")

// StreamResult is the outcome of a stream to an echo and back.
type StreamResult struct {
	Bytes    int64         // sent, and received if Err is nil
	Duration time.Duration // from the first byte sent to the end received
	Err      error
}

// Stream sends n pseudo-random bytes to an echo through CONNECT, half-closes, reads
// until the end and compares the hashes. It takes at most a minute.
func Stream(ctx context.Context, client *socks.Client, echo socks.Addr, n int64) StreamResult {
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	conn, err := client.Connect(ctx, echo)
	if err != nil {
		return StreamResult{Bytes: n, Err: err}
	}
	start := time.Now()
	err = thereAndBack(ctx, conn, n)
	return StreamResult{Bytes: n, Duration: time.Since(start), Err: err}
}

// thereAndBack sends n bytes and the end of the stream, and returns an error unless both
// come back. It closes conn.
func thereAndBack(ctx context.Context, conn net.Conn, n int64) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	sent, received := sha256.New(), sha256.New()
	var sendErr error
	var sender sync.WaitGroup
	sender.Go(func() { sendErr = sendPattern(io.MultiWriter(conn, sent), conn, n) })
	got, err := io.Copy(received, io.LimitReader(conn, n+1))
	conn.Close() // or the sender may block, if the echo does not read any more
	sender.Wait()

	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("after %d of %d bytes: %w", got, n, err)
	case got > n:
		return fmt.Errorf("%w: more than %d bytes came back", errChanged, n)
	case got < n:
		return fmt.Errorf("%w: %d of %d bytes came back", errCutShort, got, n)
	case sendErr != nil:
		return fmt.Errorf("while sending: %w", sendErr)
	case !bytes.Equal(sent.Sum(nil), received.Sum(nil)):
		return fmt.Errorf("%w: the hashes of %d bytes differ", errChanged, n)
	}
	return nil
}

// sendPattern writes n pseudo-random bytes to w, which writes to conn, and half-closes
// conn.
func sendPattern(w io.Writer, conn net.Conn, n int64) error {
	if _, err := io.CopyN(w, rand.NewChaCha8([32]byte{1}), n); err != nil {
		return err
	}
	return conn.(*net.TCPConn).CloseWrite()
}
