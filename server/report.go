package server

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"time"

	"wmproxy/internal/egress"
	"wmproxy/internal/status"
	"wmproxy/tunnel"
)

// serveStatus serves the socket in the state directory.
func (s *Server) serveStatus(ls *listeners, registry *tunnel.Registry, exits *egress.Exits, budget *tunnel.Budget) (stop func()) {
	name, _, _ := net.SplitHostPort(s.cfg.Listen)
	p := status.Process{
		Role: status.Server, Started: time.Now(), Listen: net.JoinHostPort(name, strconv.Itoa(int(ls.port))),
		Budget: budget, Events: &s.events, Total: &s.total, Users: &s.users,
	}
	return status.Serve(s.cfg.State.Path(), func() status.Report { return p.Report(sessions(registry), exits.Report()) }, s.cfg.Log)
}

// sessions returns the sessions, oldest first.
func sessions(registry *tunnel.Registry) []status.Session {
	all := registry.Sessions()
	list := make([]status.Session, len(all))
	for i, s := range all {
		list[i] = status.FromSession(s.Snapshot())
	}
	slices.SortFunc(list, func(a, b status.Session) int {
		return cmp.Or(cmp.Compare(b.AgeSeconds, a.AgeSeconds), cmp.Compare(a.ID, b.ID))
	})
	return list
}
