package client

import (
	"log/slog"
	"net"

	"wmproxy/internal/config"
	"wmproxy/internal/state"
)

// Config is a client's options, which are valid, and what its process gives it. Log is
// required.
type Config struct {
	config.Client

	// Descriptors is how many this process may have open; 0 is not known. All but a
	// reserve are shared among the applications.
	Descriptors int

	// State is the open and locked state directory, or nil if there is none. It is closed
	// by the caller after Run has returned.
	State *state.Dir

	// Started, if set, is called once the entrance listens, with its address.
	Started func(net.Addr)

	// Log gets everything that is worth a line. It never sees a secret.
	Log *slog.Logger
}
