package main

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
)

// prepare makes the process ready to serve: descriptors, a word about small
// buffers, the debug listener where debug is an address, processors. stop undoes it.
func prepare(ctx context.Context, debug netip.AddrPort, log *slog.Logger) (stop func(), err error) {
	raiseDescriptorLimit(log)
	checkUDPBuffers(log)
	stopDebug, err := startDebug(debug, log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { governProcs(ctx) })
	return func() {
		cancel()
		wg.Wait()
		stopDebug()
	}, nil
}
