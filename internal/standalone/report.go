package standalone

import (
	"time"

	"wmproxy/internal/egress"
	"wmproxy/internal/ingress"
	"wmproxy/internal/stats"
	"wmproxy/internal/status"
	"wmproxy/internal/user"
	"wmproxy/tunnel"
)

// serveStatus serves the socket in the state directory, if there is one.
func serveStatus(cfg *Config, listen string, totals *totals, route *ingress.Route, exits *egress.Exits, budget *tunnel.Budget) (stop func()) {
	p := status.Process{
		Role: status.Proxy, Started: time.Now(), Listen: listen,
		Budget: budget, Events: new(status.Events), Total: &totals.entrance, Users: totals.users,
	}
	return status.Serve(cfg.State.Path(), func() status.Report {
		r := p.Report(nil, joined(route.Report(), exits.Report()))
		dropped := totals.exit.Dropped()
		r.Total.Drops = status.Add(r.Total.Drops, dropped.ByReason())
		return r
	}, cfg.Log)
}

// totals returns the traffic since the start.
type totals struct {
	entrance, exit stats.Total
	users          *user.Set // of the entrance
}

// joined returns the entrance's associations with the figures of their exits, which are in the
// same process and have the same flow number.
func joined(entrance, exit []status.Association) []status.Association {
	at := make(map[uint64]*status.Association, len(exit))
	for i := range exit {
		at[exit[i].Flow] = &exit[i]
	}
	for i := range entrance {
		a := &entrance[i]
		a.Session = ""
		if e := at[a.Flow]; e != nil {
			a.Exit, a.IdleSeconds, a.Drops = e.Exit, e.IdleSeconds, status.Add(a.Drops, e.Drops)
		}
	}
	return entrance
}
