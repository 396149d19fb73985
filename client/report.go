package client

import (
	"time"

	"wmproxy/internal/status"
	"wmproxy/tunnel"
)

// serveStatus serves the socket in the state directory, if there is one. listen is the
// entrance's address.
func (c *Client) serveStatus(listen string, budget *tunnel.Budget) (stop func()) {
	p := status.Process{
		Role: status.Client, Started: time.Now(), Listen: listen,
		Budget: budget, Events: &c.events, Total: &c.total, Users: c.users,
	}
	return status.Serve(c.cfg.State.Path(), func() status.Report { return p.Report(c.sessionReports(), c.route.Report()) }, c.cfg.Log)
}

// sessionReports returns the session with each server.
func (c *Client) sessionReports() []status.Session {
	list := make([]status.Session, len(c.upstreams))
	for i, u := range c.upstreams {
		s := status.FromSession(u.session.Snapshot())
		s.Server, s.User = u.link.Address(), u.link.Name
		s.Preferred = c.preferred.Is(u.session)
		s.State, _ = u.status.line(u.session)
		list[i] = s
	}
	return list
}
