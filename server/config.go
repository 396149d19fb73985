package server

import (
	"log/slog"

	"wmproxy/internal/config"
	"wmproxy/internal/link"
	"wmproxy/internal/state"
)

// Config is a server's options, which are valid, and what its process gives it. State and
// Log are required.
type Config struct {
	config.Server

	// ReadUsers, if set, returns the users in place of Users, at the start and at each
	// Server.Reload.
	ReadUsers func() ([]config.User, error)

	// State is the open and locked state directory. It is closed by the caller after Serve
	// has returned.
	State *state.Dir

	// Descriptors is how many this process may have open; 0 is not known. All but a
	// reserve are shared among the users.
	Descriptors int

	// Log gets everything that is worth a line. It never sees a secret. Peers can cause
	// lines at will: the log's handler has to bound them.
	Log *slog.Logger

	// Started, if set, is called once the server listens on everything, with
	// the link for a client. The link holds a secret.
	Started func(link string)
}

// tokens returns what users prove themselves with; none means the random one.
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
