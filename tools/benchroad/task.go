//go:build linux

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"wmproxy/internal/bench"
	"wmproxy/socks"
)

// loadCommand is the first word of a command line by which this program starts itself at
// home as a load: "load TASK", TASK in JSON. It prints beganLine when measuring begins, and
// a result in JSON.
const (
	loadCommand = "load"
	beganLine   = "began"
)

// Kinds of tasks.
const (
	kindUDP   = "udp"
	kindUp    = "up"
	kindDown  = "down"
	kindHTTP3 = "http3"
	kindFirst = "first" // first bytes on a tunnel that is up
	kindCold  = "cold"  // first bytes on one that has just been started
)

// task is one load through one system.
type task struct {
	Kind             string
	Socks            string `json:",omitempty"`
	Target           string
	Warmup, Duration time.Duration
	PIDs             []int `json:",omitempty"`

	Rate, Size int           `json:",omitempty"` // of datagrams
	Timeout    time.Duration `json:",omitempty"`
	Streams    int           `json:",omitempty"`
	Mark       int64         `json:",omitempty"` // bytes
	Since      time.Time     // when a cold start began
	Stream     bool          `json:",omitempty"` // first bytes of a stream
	Datagram   bool          `json:",omitempty"` // and of an association
}

// http3Result is how much an HTTP/3 download brought.
type http3Result struct{ Mbit float64 }

// firstResult is how long the first byte took, in ms; 0 if none came.
type firstResult struct{ Connect, Associate float64 }

func runTask(ctx context.Context, args []string, out io.Writer) error {
	var t task
	if len(args) != 1 {
		return errors.New("load takes a task")
	}
	if err := json.Unmarshal([]byte(args[0]), &t); err != nil {
		return err
	}
	result, err := t.run(ctx, func() { fmt.Fprintln(out, beganLine) })
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(result)
}

func (t *task) run(ctx context.Context, began func()) (any, error) {
	target, err := netip.ParseAddrPort(t.Target)
	if err != nil {
		return nil, err
	}
	common := bench.Common{
		Way:      bench.Way{Socks: t.Socks, Target: socks.AddrFrom(target)},
		Duration: t.Duration, Warmup: t.Warmup, Timeout: t.Timeout, Offload: true, PIDs: t.PIDs, Began: began,
	}
	switch t.Kind {
	case kindUDP:
		return bench.UDP(ctx, bench.UDPConfig{Common: common, Associations: 1, Rate: t.Rate, Size: t.Size})
	case kindUp, kindDown:
		return bench.TCP(ctx, bench.TCPConfig{Common: common, Streams: t.Streams, Up: t.Kind == kindUp, Down: t.Kind == kindDown, Mark: t.Mark})
	case kindHTTP3:
		return t.http3(ctx, target, began)
	case kindFirst, kindCold:
		began()
		return t.first(ctx, target), nil
	}
	return nil, fmt.Errorf("no kind of task is %q", t.Kind)
}

const (
	// firsts is how often a first byte is measured.
	firsts       = 7
	firstTimeout = 3 * time.Second // of one of them
	coldTimeout  = 8 * time.Second // for a tunnel to come up
	retryPause   = 10 * time.Millisecond
)

// first measures first bytes of a stream and of an association. A tunnel that comes up is
// asked for both at once.
func (t *task) first(ctx context.Context, target netip.AddrPort) (r firstResult) {
	var both sync.WaitGroup
	measure := func(wanted bool, to *float64, try func(context.Context, netip.AddrPort) error) {
		switch {
		case wanted && t.Kind == kindCold:
			both.Go(func() { *to = t.cold(ctx, func(ctx context.Context) error { return try(ctx, target) }) })
		case wanted:
			*to = t.median(func() error { return try(ctx, target) })
		}
	}
	measure(t.Stream, &r.Connect, t.connect)
	measure(t.Datagram, &r.Associate, t.associate)
	both.Wait()
	return r
}

// median is the time in ms that an attempt takes, 0 if none succeeds.
func (t *task) median(try func() error) float64 {
	var all []time.Duration
	for range firsts {
		began := time.Now()
		if try() == nil {
			all = append(all, time.Since(began))
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return milliseconds(all[len(all)/2])
}

// cold tries until something passes, and returns how long after Since that was.
func (t *task) cold(ctx context.Context, try func(context.Context) error) float64 {
	ctx, cancel := context.WithTimeout(ctx, coldTimeout)
	defer cancel()
	for ctx.Err() == nil {
		if try(ctx) == nil {
			return milliseconds(time.Since(t.Since))
		}
		time.Sleep(retryPause)
	}
	return 0
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// connect makes a stream and waits for the echo of a byte.
func (t *task) connect(ctx context.Context, target netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, firstTimeout)
	defer cancel()
	var c net.Conn
	var err error
	if t.Socks == "" {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", target.String())
	} else {
		c, err = (&socks.Client{Server: t.Socks}).Connect(ctx, socks.AddrFrom(target))
	}
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

// resend is how long an application waits for an answer until it asks again.
const resend = 500 * time.Millisecond

// associate makes an association and waits for the echo of a datagram.
func (t *task) associate(ctx context.Context, target netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, firstTimeout)
	defer cancel()
	c, err := t.packetConn(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	to := net.UDPAddrFromAddrPort(target)
	for ctx.Err() == nil {
		if _, err := c.WriteTo([]byte("x"), to); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(resend)); err != nil {
			return err
		}
		if _, _, err := c.ReadFrom(make([]byte, 2000)); !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return ctx.Err()
}

// packetConn is an association, or a socket without a proxy.
func (t *task) packetConn(ctx context.Context) (net.PacketConn, error) {
	if t.Socks == "" {
		return new(net.ListenConfig).ListenPacket(ctx, "udp4", ":0")
	}
	return (&socks.Client{Server: t.Socks}).Associate(ctx)
}

// http3 downloads over QUIC that runs through an association, as a browser's would.
func (t *task) http3(ctx context.Context, target netip.AddrPort, began func()) (http3Result, error) {
	opening, cancel := context.WithTimeout(ctx, coldTimeout)
	defer cancel()
	c, err := t.packetConn(opening)
	if err != nil {
		return http3Result{}, err
	}
	defer c.Close()
	inner := &quic.Transport{Conn: c}
	defer inner.Close()
	transport := &http3.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // a far end of our own
		Dial: func(ctx context.Context, _ string, conf *tls.Config, qconf *quic.Config) (*quic.Conn, error) {
			return inner.DialEarly(ctx, net.UDPAddrFromAddrPort(target), conf, qconf)
		},
	}
	defer transport.Close()
	running, stop := context.WithTimeout(ctx, coldTimeout+t.Warmup+t.Duration)
	defer stop()
	request, err := http.NewRequestWithContext(running, http.MethodGet, "https://"+target.String()+"/", nil)
	if err != nil {
		return http3Result{}, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return http3Result{}, err
	}
	defer response.Body.Close()
	_, _ = read(response.Body, t.Warmup)
	began()
	bytes, took := read(response.Body, t.Duration)
	return http3Result{float64(bytes) * 8 / megabit / took.Seconds()}, nil
}

// read reads for a time and returns how much came.
func read(r io.Reader, lasts time.Duration) (bytes int, took time.Duration) {
	began := time.Now()
	b := make([]byte, 64<<10)
	for {
		n, err := r.Read(b)
		bytes += n
		if took = time.Since(began); took >= lasts || err != nil {
			return bytes, cmp.Or(took, 1)
		}
	}
}
