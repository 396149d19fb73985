package server

import (
	"context"
	"time"

	"wmproxy/internal/share"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

// carrierUse is the holder of the descriptor of a connection over TCP. QUIC connections have
// none of their own.
type carrierUse struct {
	conn *tunnel.Connection
	room *share.Pool

	// The last answer, which rounding must not change.
	last   time.Time
	lastAt uint32
}

var _ share.Holder = (*carrierUse)(nil)

// admitted takes a descriptor for the connection of a client that has authenticated.
func admitted(ctx context.Context, room *share.Pool, c *tunnel.Connection) (left func(), err error) {
	if !c.Traits().OwnDescriptor {
		return func() {}, nil
	}
	lease, err := room.Wait(ctx, c.User().Name, share.Carrier, 1, &carrierUse{conn: c, room: room})
	if err != nil {
		return nil, &carrier.CloseError{Code: carrier.CodeLimit, Reason: "this user has too many connections, flows and streams"}
	}
	return lease.Release, nil
}

// LastUsed returns the time of the last use of the session. The pool does not call it
// concurrently.
func (c *carrierUse) LastUsed() uint32 {
	if last := c.conn.LastUsed(); last != c.last {
		now := c.room.Now()
		c.last, c.lastAt = last, now-min(now, uint32(time.Since(last)/time.Second))
	}
	return c.lastAt
}

// GiveUp closes the connection and sends the client the reason.
func (c *carrierUse) GiveUp(*share.Lease) {
	c.conn.Close(carrier.CodeLimit, "others need the room, and of this user's many connections it was the least used")
}

// makeRoom frees a descriptor for a new connection: one of the user with most, or of strangers
// if they have more.
func (s *Server) makeRoom(room *share.Pool) {
	if s.tcp.Len() >= room.Most() || room.Squeeze("", share.Carrier) == nil {
		s.tcp.Evict()
	}
}
