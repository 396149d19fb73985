package client

import (
	"os"
	"time"

	"wmproxy/internal/status"
	"wmproxy/tunnel"
)

// report returns the report for wmproxy status. listen is the entrance's address.
func (c *Client) report(started time.Time, listen string, budget *tunnel.Budget) status.Report {
	r := status.Report{
		Role: status.Client, PID: os.Getpid(), At: time.Now(), Started: started, Listen: listen,
		Memory: status.FromBudget(budget.Status()), Events: c.events.List(),
	}
	sessions := make([]status.Session, 0, len(c.upstreams))
	for _, u := range c.upstreams {
		s := status.FromSession(u.session.Snapshot())
		s.Server, s.User = u.link.Address(), u.link.Name
		s.Preferred = c.preferred.Is(u.session)
		s.State, _ = u.status.line(u.session)
		sessions = append(sessions, s)
	}
	r.SetTotals(&c.total, c.users)
	r.SetSessions(sessions)
	r.SetAssociations(c.route.Report())
	return r
}

// serveStatus serves the socket in the state directory, if there is one.
func (c *Client) serveStatus(listen string, budget *tunnel.Budget) (stop func()) {
	if c.cfg.State == nil {
		return func() {}
	}
	started := time.Now()
	return status.Serve(c.cfg.State.Path(), func() status.Report { return c.report(started, listen, budget) }, c.cfg.Log)
}
