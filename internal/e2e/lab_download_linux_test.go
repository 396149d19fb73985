package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"wmproxy/internal/netlab"
	"wmproxy/socks"
)

// bulk is the rate of a download in bytes per second: fast enough to always have data under
// way, and slow enough for several at once.
const bulk = 1 << 20

// pattern is the data of downloads, repeated. Its length is a prime, so that missing or repeated
// buffers are detected.
var pattern = random(11, 65521)

// download is a download until Finish is called.
type download struct {
	t      testing.TB
	name   string
	end    func()
	ended  chan struct{} // closed to end the sender
	sent   atomic.Int64
	got    atomic.Int64
	paused time.Duration // the longest time without a byte, once done
	done   chan struct{}
	err    error // once done
}

func newDownload(t testing.TB, name string) *download {
	d := &download{t: t, name: name, ended: make(chan struct{}), done: make(chan struct{})}
	d.end = sync.OnceFunc(func() { close(d.ended) })
	t.Cleanup(d.end)
	return d
}

// serve sends until Finish is called.
func (d *download) serve(w io.Writer, flush func()) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for sent := 0; ; {
		for left := bulk / 50; left > 0; {
			from := sent % len(pattern)
			n, err := w.Write(pattern[from:min(len(pattern), from+left)])
			sent, left = sent+n, left-n
			d.sent.Add(int64(n))
			if err != nil {
				return
			}
		}
		flush()
		select {
		case <-d.ended:
			return
		case <-tick.C:
		}
	}
}

// receive reads to the end and compares the data.
func (d *download) receive(r io.Reader, err error) {
	defer close(d.done)
	if err != nil {
		d.err = err
		return
	}
	b := make([]byte, 32<<10)
	for last, got := time.Now(), 0; ; {
		n, err := r.Read(b)
		d.paused = max(d.paused, time.Since(last))
		last = time.Now()
		for part := b[:n]; len(part) > 0; {
			want := pattern[got%len(pattern):]
			want = want[:min(len(want), len(part))]
			if !bytes.Equal(part[:len(want)], want) {
				d.err = fmt.Errorf("something else came near byte %d", got)
				return
			}
			part, got = part[len(want):], got+len(want)
		}
		d.got.Store(int64(got))
		if err != nil {
			if !errors.Is(err, io.EOF) {
				d.err = err
			}
			return
		}
	}
}

// Finish ends the download and checks that all data arrived.
func (d *download) Finish() string {
	d.t.Helper()
	d.end()
	select {
	case <-d.done:
	case <-time.After(2 * waitTimeout):
		d.t.Errorf("the %s download does not end: %d bytes of %d", d.name, d.got.Load(), d.sent.Load())
		return d.name + " download hangs"
	}
	if d.err != nil || d.got.Load() != d.sent.Load() {
		d.t.Errorf("the %s download broke after %d bytes of %d: %v", d.name, d.got.Load(), d.sent.Load(), d.err)
	}
	return fmt.Sprintf("%s download whole, %.1f MB, at a stand for %v", d.name, float64(d.got.Load())/1e6, d.paused.Round(time.Millisecond))
}

// startHTTP3Download starts a download through an association, with an application's QUIC.
func (l *lab) startHTTP3Download() *download {
	t := l.t
	t.Helper()
	d := newDownload(t, "HTTP/3")
	var socket net.PacketConn
	l.in(l.Targets, func() { socket = listenUDP(t, netip.AddrPortFrom(netlab.TargetAddr(), 0).String()) })
	url, dial := startHTTP3(t, socket, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		d.serve(w, w.(http.Flusher).Flush)
	}))
	inner := &quic.Transport{Conn: l.associate()}
	transport := &http3.Transport{Dial: dial(inner)}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		<-d.done
		transport.Close()
		inner.Close()
	})
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		response, err := transport.RoundTrip(request)
		if err != nil {
			d.receive(nil, err)
			return
		}
		d.receive(response.Body, nil)
		response.Body.Close()
		transport.Close()
		inner.Close()
		inner.Conn.Close()
	}()
	return d
}

// startTCPDownload starts a download through a CONNECT stream.
func (l *lab) startTCPDownload() *download {
	t := l.t
	t.Helper()
	d := newDownload(t, "TCP")
	var ln *net.TCPListener
	l.in(l.Targets, func() { ln = listenTCP(t, netip.AddrPortFrom(netlab.TargetAddr(), 0).String()) })
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		d.serve(c, func() {})
	}()
	conn := l.connect(socks.AddrFrom(ln.Addr().(*net.TCPAddr).AddrPort()))
	t.Cleanup(func() {
		d.end()
		ln.Close()
		conn.Close()
		<-d.done
		<-served
	})
	go func() {
		d.receive(conn, nil)
		conn.Close()
	}()
	return d
}

// started waits until some data has arrived.
func (d *download) started() {
	d.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); d.got.Load() < bulk/10; <-tick.C {
		if time.Since(began) > waitTimeout {
			d.t.Fatalf("the %s download does not start", d.name)
		}
	}
}
