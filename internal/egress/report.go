package egress

import (
	"maps"
	"slices"
	"time"

	"wmproxy/internal/status"
)

// Report returns the open flows in no order.
func (e *Exits) Report() []status.Association {
	e.mu.Lock()
	open := slices.Collect(maps.Keys(e.flows))
	e.mu.Unlock()
	list := make([]status.Association, len(open))
	for i, f := range open {
		list[i] = f.report()
	}
	return list
}

func (f *flow) report() status.Association {
	used := f.used.Load() // before the tick, which is not behind it then
	ticks := f.user.exits.tick.Load() - used
	idle := status.Seconds(time.Duration(ticks) * f.user.exits.every)
	exit := "" // if others have its socket
	if sock := f.sock.Load(); sock != nil {
		exit = sock.LocalAddr().String()
	}
	s := f.counted()
	return status.Association{
		User: f.user.Name, Exit: exit, Flow: f.link.ID(),
		AgeSeconds: status.Seconds(time.Since(f.since)), IdleSeconds: &idle,
		Up: s.Up, Down: s.Down, Drops: s.Drops.ByReason(),
	}
}
