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
	s, drops, f := a.socks.Stats(), a.drops(), a.leg.Load().flow
	return status.Association{
		User: a.socks.User(), Client: a.socks.Client().String(), Session: f.Session().ID().String(), Flow: f.ID(),
		AgeSeconds: status.Seconds(a.socks.Age()),
		Up:         status.Traffic{Datagrams: s.Up.Datagrams, Bytes: s.Up.Bytes},
		Down:       status.Traffic{Datagrams: s.Down.Datagrams, Bytes: s.Down.Bytes},
		Drops:      status.Add(s.DropsByReason(), drops.ByReason()),
	}
}
