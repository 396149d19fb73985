// Package loglimit keeps a log readable when somebody can cause a line at will.
package loglimit

import (
	"context"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

const (
	// Interval is how long lines are counted together.
	Interval = 10 * time.Second

	// MaxInfo and MaxWarn bound the lines of one kind about one user in an Interval, at
	// level Info and above it. The last line that was left out is logged at its end.
	MaxInfo = 30
	MaxWarn = 5

	// LeftOut is the key of the number of lines left out before the line that has it.
	LeftOut = "left_out"

	// Attributes that name a user of the server, a server of the client, and the address
	// of a peer.
	userKey   = "user"
	serverKey = "server"
	clientKey = "client"

	// strangers is how many groups the clients without a user name are counted in, by
	// their network, so that one of them does not use up the bound of all.
	strangers = 16

	// maxCounts bounds the kinds and users that are counted at a time. Beyond it all
	// users are taken for one.
	maxCounts = 4096
)

// Handler passes records on to another handler, within bounds for those at Info and
// above. Lines are of one kind if the same call in the code logs them, even with different texts. The user is
// the attribute "user" or "server", or else the network of the address in "client".
type Handler struct {
	next   slog.Handler
	who    who // as attributes that the handler already has name it
	counts *counts
}

// New returns a Handler in front of next.
func New(next slog.Handler) *Handler {
	return &Handler{next: next, counts: &counts{of: make(map[kind]*count), seed: maphash.MakeSeed()}}
}

// Enabled implements [slog.Handler].
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// WithAttrs implements [slog.Handler].
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.next = h.next.WithAttrs(attrs)
	for _, a := range attrs {
		c.who = h.counts.named(c.who, a)
	}
	return &c
}

// WithGroup implements [slog.Handler].
func (h *Handler) WithGroup(name string) slog.Handler {
	c := *h
	c.next = h.next.WithGroup(name)
	return &c
}

// Handle implements [slog.Handler].
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo && !h.passes(r) {
		return nil
	}
	return h.next.Handle(ctx, r)
}

// Flush passes on the records that would come at the end of an Interval.
func (h *Handler) Flush() {
	for _, l := range h.counts.takeAll() {
		l.tell()
	}
}

// passes counts a record and reports whether it is within bounds.
func (h *Handler) passes(r slog.Record) bool {
	k := kind{code: r.PC, who: h.who}
	r.Attrs(func(a slog.Attr) bool {
		k.who = h.counts.named(k.who, a)
		return true
	})
	most := MaxInfo
	if r.Level > slog.LevelInfo {
		most = MaxWarn
	}
	return h.counts.passes(k, r, h.next, most, time.Now())
}

// who is a user, or a number of strangers.
type who struct {
	user     string
	stranger uint64 // from 1; 0 is nobody
}

// kind is lines that are counted together.
type kind struct {
	code uintptr // the call that logs them
	who  who
}

// count is the lines of one kind in an Interval.
type count struct {
	ends   time.Time
	lines  int
	out    int // lines that were left out
	last   leftOut
	ending *time.Timer // once a line was left out
}

// leftOut is a line that was left out, and the number of them.
type leftOut struct {
	record slog.Record
	next   slog.Handler
	out    int
}

// tell logs the line that was left out.
func (l leftOut) tell() {
	if l.out > 1 {
		l.record.AddAttrs(slog.Int(LeftOut, l.out-1))
	}
	_ = l.next.Handle(context.Background(), l.record) // nobody asked for it
}

// counts is all there are of a process.
type counts struct {
	seed maphash.Seed

	mu    sync.Mutex
	of    map[kind]*count
	swept time.Time
}

// named returns who a line is about, which was w before this attribute.
func (c *counts) named(w who, a slog.Attr) who {
	switch a.Key {
	case userKey, serverKey:
		if user := a.Value.String(); user != "" {
			return who{user: user}
		}
	case clientKey:
		if w.user != "" {
			return w
		}
		var client netip.AddrPort // the zero one if it is something else
		if a.Value.Kind() == slog.KindString {
			client, _ = netip.ParseAddrPort(a.Value.String())
		} else {
			client, _ = a.Value.Any().(netip.AddrPort)
		}
		return who{stranger: 1 + maphash.Comparable(c.seed, networkOf(client.Addr()))%strangers}
	}
	return w
}

// networkOf returns the IPv4 /24 or IPv6 /48 of an address.
func networkOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 24
	if a.Is6() {
		bits = 48
	}
	p, _ := a.Prefix(bits) // the zero address has the zero prefix
	return p
}

func (c *counts) passes(k kind, r slog.Record, next slog.Handler, most int, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.of[k]
	if n == nil && len(c.of) >= maxCounts {
		c.sweepLocked(now)
		if len(c.of) >= maxCounts {
			k.who = who{}
			n = c.of[k]
		}
	}
	if n == nil {
		n = &count{}
		c.of[k] = n
	}
	if n.out == 0 && !now.Before(n.ends) {
		*n = count{ends: now.Add(Interval)}
	}
	n.lines++
	if n.lines <= most {
		return true
	}
	n.out++
	n.last = leftOut{record: r.Clone(), next: next, out: n.out}
	if n.ending == nil {
		n.ending = time.AfterFunc(n.ends.Sub(now), func() { c.end(k, n) })
	}
	return false
}

// sweepLocked forgets counts of past Intervals, once in a while; c.mu is held.
func (c *counts) sweepLocked(now time.Time) {
	if now.Sub(c.swept) < Interval/2 {
		return
	}
	c.swept = now
	for k, n := range c.of {
		if n.out == 0 && !now.Before(n.ends) {
			delete(c.of, k)
		}
	}
}

// end is the end of an Interval in which lines were left out.
func (c *counts) end(k kind, n *count) {
	c.mu.Lock()
	if c.of[k] != n {
		c.mu.Unlock()
		return
	}
	delete(c.of, k)
	c.mu.Unlock()
	n.last.tell()
}

// takeAll ends every Interval and returns the lines to log.
func (c *counts) takeAll() (all []leftOut) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, n := range c.of {
		if n.ending != nil {
			n.ending.Stop()
			all = append(all, n.last)
		}
		delete(c.of, k)
	}
	return all
}
