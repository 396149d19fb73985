package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"wmproxy/internal/udpio"
	"wmproxy/socks"
)

// ErrNoReply is returned if no reply arrives in time.
var ErrNoReply = errors.New("no reply")

// Errors of a reply.
var (
	errChanged     = errors.New("the reply differs from what was sent")
	errWrongSource = errors.New("the reply comes from the wrong source")
)

// Pinger sends datagrams to an echo through an association and compares the replies. It
// must not be used by two goroutines at once, and nothing else may read the association.
type Pinger struct {
	conn    *socks.PacketConn
	echo    socks.Addr
	seq     uint64
	pattern []byte
	out, in []byte
}

// patternShift is the number of offsets in the pattern at which payloads begin, in turn,
// so that neighbours in the sequence differ.
const patternShift = 251

// NewPinger returns a Pinger on conn, which the caller must close.
func NewPinger(conn *socks.PacketConn, echo socks.Addr) *Pinger {
	p := &Pinger{
		conn:    conn,
		echo:    echo,
		pattern: make([]byte, udpio.MaxDatagram+patternShift),
		out:     make([]byte, udpio.MaxDatagram),
		in:      make([]byte, 1<<16),
	}
	rand.NewChaCha8([32]byte{}).Read(p.pattern) // a fixed seed, so that failures can be repeated
	return p
}

// pingSeqLen is the length of the sequence number, little-endian, at the start of a
// payload. A shorter payload has its first bytes only.
const pingSeqLen = 8

// payload returns the next datagram of size bytes. It is valid until the next call.
func (p *Pinger) payload(size int) []byte {
	p.seq++
	b := p.out[:size]
	copy(b, p.pattern[p.seq%patternShift:])
	var seq [pingSeqLen]byte
	binary.LittleEndian.PutUint64(seq[:], p.seq)
	copy(b, seq[:])
	return b
}

// Ping sends a datagram of size bytes, 0 to udpio.MaxDatagram, waits up to wait for its echo,
// and returns the round-trip time. It skips late echoes of earlier datagrams.
func (p *Pinger) Ping(size int, wait time.Duration) (time.Duration, error) {
	if size < 0 || size > udpio.MaxDatagram {
		return 0, fmt.Errorf("%w: %d bytes", socks.ErrDatagramSize, size)
	}
	sent := p.payload(size)
	start := time.Now()
	p.conn.SetDeadline(start.Add(wait))
	if _, err := p.conn.WriteToAddr(sent, p.echo); err != nil {
		return 0, err
	}
	for {
		n, from, err := p.conn.ReadFromAddr(p.in)
		took := time.Since(start)
		if timedOut(err) {
			return 0, fmt.Errorf("%w within %v", ErrNoReply, wait)
		}
		if err != nil {
			return 0, err
		}
		got := p.in[:n]
		switch {
		case late(sent, got):
			continue
		case !bytes.Equal(got, sent):
			return 0, fmt.Errorf("%w: %d bytes came back for %d", errChanged, n, size)
		case p.echo.IP.IsValid() && from != p.echo:
			return 0, fmt.Errorf("%w: %s instead of %s", errWrongSource, visible(from), p.echo)
		}
		return took, nil
	}
}

// late reports whether got is the echo of another datagram than sent: its sequence number
// differs, or its content if it is too short for one.
func late(sent, got []byte) bool {
	n := min(len(sent), len(got), pingSeqLen)
	if n < pingSeqLen {
		return !bytes.Equal(sent, got)
	}
	return !bytes.Equal(sent[:n], got[:n])
}

func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// SizeResult is the outcome for datagrams of one size.
type SizeResult struct {
	Size     int // bytes of payload
	Sent     int
	Received int           // intact and in time
	Min      time.Duration // of the round trips; 0 if there were none
	Median   time.Duration
	Err      error // the last failure; nil if every datagram came back
}

// OK reports whether datagrams of this size pass: some came back, and none was changed.
// UDP may lose single ones.
func (r SizeResult) OK() bool {
	return r.Received > 0 && (r.Err == nil || errors.Is(r.Err, ErrNoReply))
}

// pace bounds the measurement of a size.
type pace struct {
	rounds  int           // round trips
	wait    time.Duration // for each reply
	giveUp  int           // losses from the start after which it ends
	perSize time.Duration // for all round trips
}

var sizePace = pace{rounds: 9, wait: time.Second, giveUp: 3, perSize: 10 * time.Second}

// Sizes measures round trips to an echo for each of sizes, in bytes, through an
// association of client. If the association fails or ctx ends, it returns the results
// so far and an error.
func Sizes(ctx context.Context, client *socks.Client, echo socks.Addr, sizes []int) ([]SizeResult, error) {
	return measureSizes(ctx, client, echo, sizes, sizePace)
}

func measureSizes(ctx context.Context, client *socks.Client, echo socks.Addr, sizes []int, pace pace) ([]SizeResult, error) {
	conn, err := client.Associate(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	pinger := NewPinger(conn, echo)
	var results []SizeResult
	for _, size := range sizes {
		r := measureSize(pinger, size, pace)
		if ctx.Err() != nil {
			return results, context.Cause(ctx)
		}
		results = append(results, r)
		if errors.Is(r.Err, socks.ErrAssociationEnded) {
			return results, r.Err
		}
	}
	return results, nil
}

func measureSize(p *Pinger, size int, pace pace) SizeResult {
	r := SizeResult{Size: size}
	var trips []time.Duration
	end := time.Now().Add(pace.perSize)
	for r.Sent < pace.rounds && time.Now().Before(end) {
		r.Sent++
		trip, err := p.Ping(size, pace.wait)
		if err == nil {
			trips = append(trips, trip)
			continue
		}
		r.Err = err
		if !errors.Is(err, ErrNoReply) || len(trips) == 0 && r.Sent >= pace.giveUp {
			break
		}
	}
	r.Received = len(trips)
	if len(trips) > 0 {
		slices.Sort(trips)
		r.Min, r.Median = trips[0], trips[len(trips)/2]
	}
	return r
}
