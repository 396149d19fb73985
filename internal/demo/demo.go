// Package demo runs wmproxy on one machine, without a network: a server, a client for
// each transport, and targets, all on loopback.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"wmproxy/client"
	"wmproxy/internal/bench"
	"wmproxy/internal/config"
	"wmproxy/internal/link"
	"wmproxy/internal/probe"
	"wmproxy/internal/state"
	"wmproxy/server"
	"wmproxy/socks"
)

const (
	// domain is the name that the demo's DNS server knows.
	domain = "demo.wmproxy.test"

	// startTimeout bounds the start of everything.
	startTimeout = 10 * time.Second

	streamBytes = 4 << 20
)

// sizes are the payloads in bytes: 0, 1, two common ones, the largest in an Ethernet frame
// without fragmentation, a jumbo one, and the largest through SOCKS5.
var sizes = []int{0, 1, 512, 1200, 1472, 9000, bench.MaxSize}

var expect = netip.MustParseAddr("192.0.2.53") // for documentation, RFC 5737

// Run prints a table of measurements to out and reports whether all passed. Unless once
// is set it then stays up until ctx ends.
func Run(ctx context.Context, once bool, out io.Writer) (ok bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	dir, err := os.MkdirTemp("", "wmproxy-demo-")
	if err != nil {
		if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return false, fmt.Errorf("cannot make a directory for the demo's state (%w); set TMPDIR to one that can be written to", err)
	}
	defer os.RemoveAll(dir)
	d := &demo{dir: dir, errs: make(chan error, 4), wg: &wg, ctx: ctx}

	targets, closeTargets, err := listenTargets()
	if err != nil {
		return false, err
	}
	defer closeTargets()
	serverLink, closeState, err := d.startServer()
	if err != nil {
		return false, err
	}
	defer func() { cancel(); wg.Wait(); closeState() }()

	var results []probe.Measurement
	var entrances []string
	ok = true
	for _, transport := range []string{config.QUIC, config.Yamux} {
		addr, err := d.startClient(serverLink, transport)
		if err != nil {
			return false, err
		}
		entrances = append(entrances, addr)
		m := probe.Measure(ctx, transport, &socks.Client{Server: addr}, targets)
		results = append(results, m)
		ok = ok && m.OK()
	}
	if err := probe.PrintTable(out, results...); err != nil {
		return false, err
	}
	if ctx.Err() != nil {
		return ok, nil
	}
	if !ok {
		fmt.Fprintln(out, "\nNot everything passed.")
	} else {
		fmt.Fprintln(out, "\nEverything passed.")
	}
	if once {
		return ok, nil
	}
	fmt.Fprintf(out, "\nSOCKS5 over QUIC on %s, over yamux on %s; echo on %v, DNS on %v (%s).\nCtrl-C ends it.\n",
		entrances[0], entrances[1], targets.Echo, targets.DNS, domain)
	select {
	case <-ctx.Done():
		return ok, nil
	case err := <-d.errs:
		return false, err
	}
}

// demo is the server and the clients, which run as goroutines of this process.
type demo struct {
	ctx  context.Context
	dir  string
	wg   *sync.WaitGroup
	errs chan error
}

func listenTargets() (t probe.Targets, closeAll func(), err error) {
	echo, err := bench.ListenEcho(netip.MustParseAddrPort("127.0.0.1:0"), false)
	if err != nil {
		return t, nil, err
	}
	dns, err := probe.ListenDNS("127.0.0.1:0", map[string]probe.Records{domain: {A: []netip.Addr{expect}}})
	if err != nil {
		echo.Close()
		return t, nil, err
	}
	return probe.Targets{
		Echo: socks.AddrFrom(echo.Addr()), DNS: dns.Addr(),
		Domain: domain, Expect: expect, Sizes: sizes, Stream: streamBytes,
	}, func() { echo.Close(); dns.Close() }, nil
}

// startServer starts a server with a fresh identity and returns its link.
func (d *demo) startServer() (serverLink link.Link, closeState func(), err error) {
	dir, err := state.Open(filepath.Join(d.dir, "server"))
	if err != nil {
		return serverLink, nil, err
	}
	started := make(chan string, 1)
	cfg := config.DefaultServer()
	cfg.Listen = "127.0.0.1:0"
	cfg.Exit.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	s, err := server.New(server.Config{
		Server: cfg, State: dir,
		Log:     slog.New(slog.DiscardHandler),
		Started: func(text string) { started <- text },
	})
	if err != nil {
		dir.Close()
		return serverLink, nil, err
	}
	d.serve(s.Serve)
	text, err := await(d, started)
	if err == nil {
		serverLink, err = link.Parse(text)
	}
	return serverLink, func() { dir.Close() }, err
}

// startClient starts a client and returns the address of its SOCKS5 entrance.
func (d *demo) startClient(to link.Link, transport string) (string, error) {
	started := make(chan net.Addr, 1)
	cfg := config.DefaultClient()
	cfg.Links, cfg.Transport, cfg.Entrance.Listen = []link.Link{to}, transport, "127.0.0.1:0"
	c := client.New(client.Config{
		Client:  cfg,
		Log:     slog.New(slog.DiscardHandler),
		Started: func(a net.Addr) { started <- a },
	})
	d.serve(c.Run)
	addr, err := await(d, started)
	if err != nil {
		return "", err
	}
	return addr.String(), nil
}

// serve runs a server or a client until the demo ends.
func (d *demo) serve(run func(context.Context) error) {
	d.wg.Go(func() {
		if err := run(d.ctx); err != nil {
			d.errs <- err
		}
	})
}

// await returns the value that a server or client sends when it has started, or an error
// if it does not start.
func await[T any](d *demo, started <-chan T) (v T, err error) {
	select {
	case v = <-started:
		return v, nil
	case err = <-d.errs:
		return v, err
	case <-time.After(startTimeout):
		return v, errors.New("the demo did not start in time")
	case <-d.ctx.Done():
		return v, context.Cause(d.ctx)
	}
}
