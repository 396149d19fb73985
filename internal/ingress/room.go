package ingress

import (
	"context"
	"errors"
	"sync/atomic"

	"wmproxy/internal/entrance"
	"wmproxy/internal/share"
	"wmproxy/tunnel/carrier"
)

// Room is the descriptors that applications share. Its users are the users that
// authenticated, or client addresses if there is no password.
type Room struct {
	*share.Pool

	// Beside is how many more descriptors each association and each CONNECT has in this
	// process: 1 if its exit is here, else 0.
	Beside int

	// Streams is the streams of the tunnel, one for each CONNECT, that the same users
	// share; nil means that the tunnel has no bound.
	Streams *share.Pool
}

// MakeRoom is the hook of an entrance for when the system has no descriptors left.
func (r *Room) MakeRoom(halfOpen int) bool {
	return halfOpen < r.Most() && r.Squeeze("", share.Stream) != nil
}

const (
	associationDescriptors = 2 // the control connection and the UDP socket
	connectDescriptors     = 1
)

// subnetBits is the length of the IPv6 prefix that counts as one user: a host has a whole
// /64 to choose from (RFC 4291 section 2.5.4).
const subnetBits = 64

// errGivenUp ends a CONNECT when others need its descriptors.
var errGivenUp = &carrier.ResetError{Code: carrier.CodeLimit, Cause: errors.New("others need its descriptors")}

// errNoStreams refuses a user who has a fair share of the tunnel's streams.
var errNoStreams = errors.New("no more TCP streams may be open for this user")

// userOf returns who an application counts as.
func userOf(o entrance.Origin) string {
	if o.User.Name != "" {
		return o.User.Name
	}
	client := o.Client.Addr().Unmap().WithZone("")
	if client.Is6() {
		if p, err := client.Prefix(subnetBits); err == nil {
			return p.String()
		}
	}
	return client.String()
}

// use is when something was last used, and how to end it for others' sake. The zero
// value belongs to no pool and notes nothing.
type use struct {
	pool   *share.Pool
	passed atomic.Uint32
	end    func()
	leases [2]*share.Lease // nil unless it has them
}

var _ share.Holder = (*use)(nil)

// note is called whenever something passes.
func (u *use) note() {
	if u.pool != nil {
		u.passed.Store(u.pool.Now())
	}
}

// LastUsed returns when something last passed.
func (u *use) LastUsed() uint32 { return u.passed.Load() }

// GiveUp ends the association or CONNECT that has the descriptors.
func (u *use) GiveUp(*share.Lease) { u.end() }

// enter takes descriptors for an association; end ends it. It does not wait.
func (r *Room) enter(u *use, user string, end func()) (err error) {
	u.pool, u.end = r.Pool, end
	u.note()
	u.leases[0], err = r.Take(user, share.Flow, associationDescriptors+r.Beside, u)
	return err
}

// enterStream takes descriptors and a stream for a CONNECT. It may wait a little.
func (r *Room) enterStream(ctx context.Context, u *use, user string, end func()) (err error) {
	u.pool, u.end = r.Pool, end
	u.note()
	if u.leases[0], err = r.Wait(ctx, user, share.Stream, connectDescriptors+r.Beside, u); err != nil || r.Streams == nil {
		return err
	}
	if u.leases[1], err = r.Streams.Wait(ctx, user, share.Stream, 1, u); errors.Is(err, share.ErrFull) {
		return errNoStreams
	}
	return err
}

// leave releases the leases; the descriptors are closed.
func (u *use) leave() {
	for _, l := range u.leases {
		if l != nil {
			l.Release()
		}
	}
}
