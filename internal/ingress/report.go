package ingress

import (
	"maps"
	"slices"

	"wmproxy/internal/status"
)

// Report lists the open associations as an operator sees them, in no order.
func (r *Route) Report() []status.Association {
	r.mu.Lock()
	open := slices.Collect(maps.Keys(r.associations))
	r.mu.Unlock()
	list := make([]status.Association, len(open))
	for i, a := range open {
		list[i] = a.report()
	}
	return list
}

func (a *association) report() status.Association {
	o, t, f := a.app.Origin(), a.app.Traffic(), a.flow.Load()
	t.Drops.Add(a.Dropped())
	return status.Association{
		User: o.User.Name, Client: o.Client.String(), Session: f.Session().ID().String(), Flow: f.ID(),
		AgeSeconds: status.Seconds(a.app.Age()),
		Up:         t.Up, Down: t.Down, Drops: t.Drops.ByReason(),
	}
}
