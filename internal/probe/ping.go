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

	"wmproxy/socks"
)

// MaxDatagram is the largest payload in bytes that UDP carries on IPv4. Through
// an IPv4 association its SOCKS5 header counts too, 10 bytes for an IPv4 target.
const MaxDatagram = 65507

// Errors of a round trip.
var (
	// ErrNoReply: nothing intact came back in time.
	ErrNoReply = errors.New("no reply")
	// ErrChanged: the reply is not what was sent.
	ErrChanged = errors.New("the reply differs from what was sent")
	// ErrWrongSource: the reply names another source than the target.
	ErrWrongSource = errors.New("the reply comes from the wrong source")
)

// Pinger sends datagrams to an echo through one association and compares what
// comes back. It must not be used by two goroutines at once, nor the association
// be read by another.
type Pinger struct {
	conn    *socks.PacketConn
	echo    socks.Addr
	seq     uint64
	pattern []byte
	out, in []byte
}

// patternShift is how far a payload's bytes can be shifted from those of its
// neighbours in sequence, so that no two look the same.
const patternShift = 251

// NewPinger returns a Pinger on conn, which stays the caller's.
func NewPinger(conn *socks.PacketConn, echo socks.Addr) *Pinger {
	p := &Pinger{
		conn:    conn,
		echo:    echo,
		pattern: make([]byte, MaxDatagram+patternShift),
		out:     make([]byte, MaxDatagram),
		in:      make([]byte, 1<<16),
	}
	// A fixed seed: what fails once fails again.
	rand.NewChaCha8([32]byte{}).Read(p.pattern)
	return p
}

// A payload: as much as fits of a sequence number, least significant byte
// first, then pseudo-random bytes.
const pingSeqLen = 8

// payload returns the next datagram of size bytes; it is valid until the next call.
func (p *Pinger) payload(size int) []byte {
	p.seq++
	b := p.out[:size]
	copy(b, p.pattern[p.seq%patternShift:])
	var seq [pingSeqLen]byte
	binary.LittleEndian.PutUint64(seq[:], p.seq)
	copy(b, seq[:])
	return b
}

// Ping sends one datagram of size bytes, 0 to MaxDatagram, and waits up to wait
// for its echo. Late echoes of earlier datagrams are passed over. The error
// wraps ErrNoReply, ErrChanged, ErrWrongSource or one of package socks.
func (p *Pinger) Ping(size int, wait time.Duration) (time.Duration, error) {
	if size < 0 || size > MaxDatagram {
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
			return 0, fmt.Errorf("%w: %d bytes came back for %d", ErrChanged, n, size)
		case p.echo.IP.IsValid() && from != p.echo:
			return 0, fmt.Errorf("%w: %s instead of %s", ErrWrongSource, visible(from), p.echo)
		}
		return took, nil
	}
}

// late says whether got is no echo of sent at all: it carries another sequence
// number, or, where there is no room for one, something else.
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

// SizeResult is what happened to datagrams of one size.
type SizeResult struct {
	Size     int // bytes of payload
	Sent     int
	Received int           // came back intact and in time
	Min      time.Duration // of the round trips; 0 if none
	Median   time.Duration
	Err      error // the last failure; nil if every datagram came back
}

// OK says whether datagrams of this size pass: some came back, and none was
// changed. Single losses are in the nature of UDP.
func (r SizeResult) OK() bool {
	return r.Received > 0 && (r.Err == nil || errors.Is(r.Err, ErrNoReply))
}

// pace is how patiently datagrams of one size are measured.
type pace struct {
	rounds  int           // round trips
	wait    time.Duration // for each
	giveUp  int           // after so many losses from the start
	perSize time.Duration // all of it together
}

var sizePace = pace{rounds: 9, wait: time.Second, giveUp: 3, perSize: 10 * time.Second}

// Sizes measures round trips to an echo for each of sizes, in bytes, through
// one association of client. The error is that of the association or of the
// context; the results measured until then come with it.
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
