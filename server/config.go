package server

import (
	"log/slog"

	"wmproxy/internal/config"
	"wmproxy/internal/link"
	"wmproxy/internal/state"
)

// Config is a server's options, which must be valid, and the resources of its process. State
// and Log are required.
type Config struct {
	config.Server

	// ReadUsers, if set, returns the users instead of Users, at the start and at each
	// Server.Reload.
	ReadUsers func() ([]config.User, error)

	// State is the open and locked state directory. The caller must close it after Serve has
	// returned.
	State *state.Dir

	// Descriptors is the number of descriptors that this process may have open, 0 if unknown.
	// Users share all but a reserve.
	Descriptors int

	// Log is the log. No secret is written to it. Peers can cause
	// lines at will: the log's handler has to bound them.
	Log *slog.Logger

	// Started, if set, is called once the server listens on everything, with the link for a
	// client. The link contains a secret.
	Started func(link string)
}

// tokens returns the users' tokens. If there are none the server uses the random one.
func (c *Config) tokens() ([]link.Token, error) {
	users := c.Users
	if c.ReadUsers != nil {
		var err error
		if users, err = c.ReadUsers(); err != nil {
			return nil, err
		}
	}
	var list []link.Token
	for _, u := range users {
		list = append(list, link.Token{Name: u.Name, Secret: string(u.Token)})
	}
	return list, nil
}
