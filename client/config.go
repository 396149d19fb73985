package client

import (
	"log/slog"
	"net"

	"wmproxy/internal/config"
	"wmproxy/internal/state"
)

// Config is a client's options, which must be valid, and the resources of its process. Log is
// required.
type Config struct {
	config.Client

	// Descriptors is the number of descriptors that this process may have open, 0 if unknown.
	// Applications share all but a reserve.
	Descriptors int

	// State is the open and locked state directory, or nil if there is none. The caller must
	// close it after Run has returned.
	State *state.Dir

	// Started, if set, is called once the entrance listens, with its address.
	Started func(net.Addr)

	// Log is the log. No secret is written to it.
	Log *slog.Logger
}
