package standalone

import (
	"os"
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
	if cfg.State == nil {
		return func() {}
	}
	started := time.Now()
	return status.Serve(cfg.State.Path(), func() status.Report {
		r := status.Report{
			Role: status.Proxy, PID: os.Getpid(), At: time.Now(), Started: started, Listen: listen,
			Memory: status.FromBudget(budget.Status()),
			Events: []status.Event{}, // there is no tunnel to which anything could happen
		}
		r.SetTotals(&totals.entrance, totals.users)
		dropped := totals.exit.Dropped()
		r.Total.Drops = status.Add(r.Total.Drops, dropped.ByReason())
		r.SetSessions(nil)
		r.SetAssociations(joined(route.Report(), exits.Report()))
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
