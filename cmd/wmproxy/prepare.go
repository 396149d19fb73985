package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/urfave/cli/v2"

	"wmproxy/internal/config"
	"wmproxy/internal/state"
	"wmproxy/internal/status"
	"wmproxy/internal/tune"
)

// serve returns the action of a command that stays.
func serve[T any](p *program, read func(*cli.Context) (T, error), run func(context.Context, T) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		p.keepHangups()
		cfg, err := read(c)
		if err != nil {
			return err
		}
		return run(c.Context, cfg)
	}
}

// running is a process that serves.
type running struct {
	log  *slog.Logger
	dir  *state.Dir // nil if no state is kept
	stop func()
}

// start makes the process ready to serve as one of status.Client, Server and Proxy: log,
// descriptors, a word about small buffers, the debug listener, processors, memory, state.
func (p *program) start(ctx context.Context, o *config.Process, role string) (*running, error) {
	if err := tune.CheckEnvironment(); err != nil {
		return nil, err
	}
	log := p.logger(o.Log)
	tune.RaiseHeapFloor()
	raiseDescriptorLimit(log)
	checkUDPBuffers(log)
	stopDebug, err := startDebug(o.Debug, log)
	if err != nil {
		return nil, p.listenFailure(err, "debug")
	}
	dir, err := openState(o.StateDir, role, log)
	if err != nil {
		stopDebug()
		return nil, err
	}
	o.Memory = memoryOr(o.Memory)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { tune.GovernProcessors(ctx) })
	wg.Go(func() { tune.ReturnMemory(ctx) })
	return &running{log, dir, func() {
		if dir != nil {
			dir.Close()
		}
		cancel()
		wg.Wait()
		stopDebug()
	}}, nil
}

// openState opens the directory that was asked for, or the role's default one. A client or
// proxy works without that, so a second one on the machine, or a read-only system, needs no
// flag.
func openState(path, role string, log *slog.Logger) (*state.Dir, error) {
	if path != "" {
		return state.Open(path)
	}
	path, err := state.DefaultDir(role)
	if err == nil {
		var dir *state.Dir
		if dir, err = state.Open(path); err == nil {
			return dir, nil
		}
	}
	if role == status.Server {
		return nil, err
	}
	level := slog.LevelInfo
	if errors.Is(err, state.ErrLocked) || path == "" {
		level = slog.LevelDebug
	}
	log.Log(context.Background(), level, "no state is kept", "reason", err)
	return nil, nil
}
