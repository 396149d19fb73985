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

// streamTimeout bounds one Stream, connecting included.
const streamTimeout = 60 * time.Second

// ErrCutShort is a stream that ended before everything had come back.
var ErrCutShort = errors.New("the stream was cut short")

// ErrNoHalfClose is a connection whose writing side cannot be closed alone.
var ErrNoHalfClose = errors.New("the connection cannot be half-closed")

// StreamResult is what happened to one stream there and back.
type StreamResult struct {
	Bytes    int64         // sent, and received if Err is nil
	Connect  time.Duration // dial, handshake and reply
	Duration time.Duration // from the first byte sent to the end received
	Err      error
}

// Stream sends n pseudo-random bytes to an echo through CONNECT, half-closes,
// reads until the end and compares the hashes. It takes a minute at most.
func Stream(ctx context.Context, client *socks.Client, echo socks.Addr, n int64) StreamResult {
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	r := StreamResult{Bytes: n}
	start := time.Now()
	conn, err := client.Connect(ctx, echo)
	if err != nil {
		r.Err = err
		return r
	}
	r.Connect = time.Since(start)
	start = time.Now()
	r.Err = thereAndBack(ctx, conn, n)
	r.Duration = time.Since(start)
	return r
}

// thereAndBack sends n bytes and the end, and expects both back. It closes conn.
// The echo may answer while it is still being sent to.
func thereAndBack(ctx context.Context, conn net.Conn, n int64) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	sent, received := sha256.New(), sha256.New()
	var sendErr error
	var sender sync.WaitGroup
	sender.Go(func() { sendErr = sendPattern(io.MultiWriter(conn, sent), conn, n) })
	got, err := io.Copy(received, io.LimitReader(conn, n+1))
	// A sender that the echo no longer listens to must not wait for it.
	conn.Close()
	sender.Wait()

	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("after %d of %d bytes: %w", got, n, err)
	case got > n:
		return fmt.Errorf("%w: more than %d bytes came back", ErrChanged, n)
	case got < n:
		return fmt.Errorf("%w: %d of %d bytes came back", ErrCutShort, got, n)
	case sendErr != nil:
		return fmt.Errorf("while sending: %w", sendErr)
	case !bytes.Equal(sent.Sum(nil), received.Sum(nil)):
		return fmt.Errorf("%w: the hashes of %d bytes differ", ErrChanged, n)
	}
	return nil
}

// sendPattern writes n pseudo-random bytes to w and half-closes conn below it.
func sendPattern(w io.Writer, conn net.Conn, n int64) error {
	if _, err := io.CopyN(w, rand.NewChaCha8([32]byte{1}), n); err != nil {
		return err
	}
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return ErrNoHalfClose
	}
	return half.CloseWrite()
}
