package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"

	"wmproxy/internal/state"
)

// prepare makes the process ready to serve: descriptors, a word about small
// buffers, the debug listener where debug is an address, processors, memory. stop ends what runs.
func prepare(ctx context.Context, debug netip.AddrPort, log *slog.Logger) (stop func(), err error) {
	roomForGarbage()
	raiseDescriptorLimit(log)
	checkUDPBuffers(log)
	stopDebug, err := startDebug(debug, log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { governProcs(ctx) })
	wg.Go(func() { returnMemory(ctx) })
	return func() {
		cancel()
		wg.Wait()
		stopDebug()
	}, nil
}

// openOptionalState opens the directory that was asked for, or the default one of
// the kind if that can be had: a client or proxy works without, so a second one on
// the machine, or a read-only system, needs no flag. nil is none.
func openOptionalState(kind, path string, log *slog.Logger) (*state.Dir, error) {
	if path != "" {
		return state.Open(path)
	}
	path, err := state.DefaultDir(kind)
	if err != nil {
		log.Debug("no state is kept", "reason", err)
		return nil, nil
	}
	dir, err := state.Open(path)
	if err != nil {
		level := slog.LevelInfo
		if errors.Is(err, state.ErrLocked) {
			level = slog.LevelDebug
		}
		log.Log(context.Background(), level, "no state is kept", "reason", err)
		return nil, nil
	}
	return dir, nil
}
