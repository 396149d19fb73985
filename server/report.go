package server

import (
	"cmp"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"wmproxy/internal/egress"
	"wmproxy/internal/status"
	"wmproxy/tunnel"
)

// serveStatus serves the socket in the state directory.
func (s *Server) serveStatus(ls *listeners, registry *tunnel.Registry, exits *egress.Exits, budget *tunnel.Budget) (stop func()) {
	started := time.Now()
	name, _, _ := net.SplitHostPort(s.cfg.Listen)
	listen := net.JoinHostPort(name, strconv.Itoa(int(ls.port)))
	return status.Serve(s.cfg.State.Path(), func() status.Report {
		r := status.Report{
			Role: status.Server, PID: os.Getpid(), At: time.Now(), Started: started, Listen: listen,
			Memory: status.FromBudget(budget.Status()), Events: s.events.List(),
		}
		r.SetTotals(&s.total, &s.users)
		r.SetSessions(sessions(registry))
		r.SetAssociations(exits.Report())
		return r
	}, s.cfg.Log)
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
