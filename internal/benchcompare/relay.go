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
	"wmproxy/internal/floor"
)

// relayCommand is the first word of a command line by which this program starts
// itself as one end of a floor.
const relayCommand = "relay"

// relay is a process of its own, like those of the systems it is measured beside:
//
//	relay udp|near AT TO
//	relay far AT TO CERT KEY
//
// It runs until ctx ends.
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
	runtime.GOMAXPROCS(1) // what wmproxy takes at rates that one processor carries
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
	case kind == "far" && len(files) == 2:
		id, err := certs.LoadOrCreate(files[0], files[1])
		if err != nil {
			return nil, err
		}
		return floor.ListenFar(at, to, id.Certificate())
	}
	return nil, fmt.Errorf("relay cannot be %q with %d files", kind, len(files))
}

// floorUDP starts two relays with plain UDP between them.
func floorUDP(_ context.Context, r *rig) (*peer, error) {
	return r.relays(func(tunnel, target string) []string { return []string{"udp", tunnel, target} }, "udp")
}

// floorQUIC starts two with a bare QUIC connection.
func floorQUIC(_ context.Context, r *rig) (*peer, error) {
	return r.relays(func(tunnel, target string) []string { return []string{"far", tunnel, target, r.cert, r.key} }, "near")
}

// relays starts a far end, and a near end that is bench's target.
func (r *rig) relays(far func(tunnel, target string) []string, near string) (*peer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	tunnel, front, err := addresses()
	if err != nil {
		return nil, err
	}
	p := &peer{target: front}
	for _, args := range [][]string{far(tunnel, r.target), {near, front, tunnel}} {
		process, err := start(r.dir, r.arrangement, self, append([]string{relayCommand}, args...)...)
		if err != nil {
			p.end()
			return nil, err
		}
		p.processes = append(p.processes, process)
	}
	return p, nil
}
