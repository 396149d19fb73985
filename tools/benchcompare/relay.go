package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"

	"wmproxy/certs"
	"wmproxy/tools/floor"
	"wmproxy/tools/stage"
)

// relayCommand is the argument with which this program starts itself as one end of a floor.
const relayCommand = "relay"

// relay runs one end of a floor until ctx ends, in a process of its own as the systems have:
//
//	relay udp|near|tls-near|yamux-near AT TO
//	relay far|tls-far|yamux-far AT TO CERT KEY
func relay(ctx context.Context, args []string) error {
	if len(args) < 3 {
		return errors.New("relay needs a kind and two addresses")
	}
	at, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	to, err := netip.ParseAddrPort(args[2])
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(1) // as wmproxy does at rates for which one processor suffices
	running, err := openRelay(ctx, args[0], at, to, args[3:])
	if err != nil {
		return err
	}
	<-ctx.Done()
	return running.Close()
}

func openRelay(ctx context.Context, kind string, at, to netip.AddrPort, files []string) (io.Closer, error) {
	switch {
	case kind == "udp":
		return floor.ListenUDP(at, to)
	case kind == "near":
		return floor.ListenNear(ctx, at, to)
	case kind == "tls-near":
		return floor.ListenTLSNear(at, to, floor.Bare)
	case kind == "yamux-near":
		return floor.ListenTLSNear(at, to, floor.Yamux)
	case len(files) == 2:
		id, err := certs.LoadOrCreate(files[0], files[1])
		if err != nil {
			return nil, err
		}
		switch kind {
		case "far":
			return floor.ListenFar(at, to, id.Certificate())
		case "tls-far":
			return floor.ListenTLSFar(at, to, id.Certificate(), floor.Bare)
		case "yamux-far":
			return floor.ListenTLSFar(at, to, id.Certificate(), floor.Yamux)
		}
	}
	return nil, fmt.Errorf("relay cannot be %q with %d files", kind, len(files))
}

// floorUDP starts two relays with plain UDP between them.
func floorUDP(_ context.Context, r *rig) (*peer, error) {
	return r.relays("udp", "udp", nil, nil)
}

// floorQUIC starts two relays with a bare QUIC connection. The near one tries until the far
// one answers.
func floorQUIC(_ context.Context, r *rig) (*peer, error) {
	return r.relays("far", "near", []string{r.cert, r.key}, nil)
}

// floorTLS starts two relays with a bare TLS connection.
func floorTLS(ctx context.Context, r *rig) (*peer, error) {
	return r.relaysOverTCP(ctx, "tls-far", "tls-near")
}

// floorYamux starts two relays with a yamux stream in a TLS connection.
func floorYamux(ctx context.Context, r *rig) (*peer, error) {
	return r.relaysOverTCP(ctx, "yamux-far", "yamux-near")
}

func (r *rig) relaysOverTCP(ctx context.Context, far, near string) (*peer, error) {
	return r.relays(far, near, []string{r.cert, r.key}, func(far *stage.Process, tunnel string) error {
		return far.Until(ctx, "open port", listens(tunnel))
	})
}

// relays starts a far end, calls wait if it is set, and starts a near end, which is bench's
// target.
func (r *rig) relays(far, near string, files []string, wait func(far *stage.Process, tunnel string) error) (*peer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	tunnel, front, err := addresses()
	if err != nil {
		return nil, err
	}
	end, err := start(r.dir, r.arrangement, self, append([]string{relayCommand, far, tunnel, r.target}, files...)...)
	if err != nil {
		return nil, err
	}
	p := &peer{target: front, processes: []*stage.Process{end}}
	if wait != nil {
		err = wait(end, tunnel)
	}
	if err == nil {
		end, err = start(r.dir, r.arrangement, self, relayCommand, near, front, tunnel)
	}
	if err != nil {
		p.end()
		return nil, err
	}
	p.processes = append(p.processes, end)
	return p, nil
}
