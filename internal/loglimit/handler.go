// Package loglimit bounds the log lines that a peer can cause.
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
	// interval is the time for which lines are counted together.
	interval = 10 * time.Second

	// maxInfo and maxWarn bound the lines of one kind about one user in an interval, at
	// level Info and above it. The last line left out is logged at the interval's end.
	maxInfo = 30
	maxWarn = 5

	// leftOutKey is the attribute with the number of lines left out before a line.
	leftOutKey = "left_out"

	// Attributes that name a user of the server, a server of the client, and the address
	// of a peer.
	userKey   = "user"
	serverKey = "server"
	clientKey = "client"

	// strangers is the number of groups in which clients without a user name are counted,
	// by their network, so that one of them does not use up the bound of all.
	strangers = 16

	// maxCounts bounds the pairs of a kind and a user that are counted at a time. Beyond
	// it all users count as one.
	maxCounts = 4096
)

// Handler passes records on to another handler and bounds the number of those at Info
// and above. Lines are of one kind if the same call in the code logs them. The user is the
// attribute "user" or "server", or else the network of the address in "client".
type Handler struct {
	next   slog.Handler
	about  subject // according to the attributes that the handler has
	counts *counts
}

// New returns a Handler that passes records on to next.
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
		c.about = h.counts.subject(c.about, a)
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

// Flush passes on the records that are due at the end of an interval.
func (h *Handler) Flush() {
	for _, l := range h.counts.endAll() {
		l.log()
	}
}

// passes counts a record and reports whether it is within bounds.
func (h *Handler) passes(r slog.Record) bool {
	k := kind{pc: r.PC, about: h.about}
	r.Attrs(func(a slog.Attr) bool {
		k.about = h.counts.subject(k.about, a)
		return true
	})
	most := maxInfo
	if r.Level > slog.LevelInfo {
		most = maxWarn
	}
	return h.counts.passes(k, r, h.next, most, time.Now())
}

// subject is the user or the group of strangers that a line is about.
type subject struct {
	user     string
	stranger uint64 // counted from 1; 0 if there is none
}

// kind identifies lines that are counted together.
type kind struct {
	pc    uintptr // of the call that logs them
	about subject
}

// count is the number of lines of one kind in an interval.
type count struct {
	ends   time.Time
	lines  int
	out    int // lines left out
	last   leftOut
	ending *time.Timer // nil until a line is left out
}

// leftOut is the last line left out, and the number of lines left out so far.
type leftOut struct {
	record slog.Record
	next   slog.Handler
	out    int
}

// log logs the line.
func (l leftOut) log() {
	if l.out > 1 {
		l.record.AddAttrs(slog.Int(leftOutKey, l.out-1))
	}
	_ = l.next.Handle(context.Background(), l.record) // slog ignores the error, too
}

// counts is the counts of all kinds.
type counts struct {
	seed maphash.Seed

	mu    sync.Mutex
	of    map[kind]*count
	swept time.Time
}

// subject returns the subject of a line with the attribute a, which was s without it.
func (c *counts) subject(s subject, a slog.Attr) subject {
	switch a.Key {
	case userKey, serverKey:
		if user := a.Value.String(); user != "" {
			return subject{user: user}
		}
	case clientKey:
		if s.user != "" {
			return s
		}
		var client netip.AddrPort // stays zero if the attribute is no address
		if a.Value.Kind() == slog.KindString {
			client, _ = netip.ParseAddrPort(a.Value.String())
		} else {
			client, _ = a.Value.Any().(netip.AddrPort)
		}
		return subject{stranger: 1 + maphash.Comparable(c.seed, networkOf(client.Addr()))%strangers}
	}
	return s
}

// networkOf returns the IPv4 /24 or IPv6 /48 of an address.
func networkOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 24
	if a.Is6() {
		bits = 48
	}
	p, _ := a.Prefix(bits) // the zero prefix for the zero address
	return p
}

func (c *counts) passes(k kind, r slog.Record, next slog.Handler, most int, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.of[k]
	if n == nil && len(c.of) >= maxCounts {
		c.sweepLocked(now)
		if len(c.of) >= maxCounts {
			k.about = subject{}
			n = c.of[k]
		}
	}
	if n == nil {
		n = &count{}
		c.of[k] = n
	}
	if n.out == 0 && !now.Before(n.ends) {
		*n = count{ends: now.Add(interval)}
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

// sweepLocked deletes the counts of past intervals, at most twice in an interval.
func (c *counts) sweepLocked(now time.Time) {
	if now.Sub(c.swept) < interval/2 {
		return
	}
	c.swept = now
	for k, n := range c.of {
		if n.out == 0 && !now.Before(n.ends) {
			delete(c.of, k)
		}
	}
}

// end ends an interval in which lines were left out.
func (c *counts) end(k kind, n *count) {
	c.mu.Lock()
	if c.of[k] != n {
		c.mu.Unlock()
		return
	}
	delete(c.of, k)
	c.mu.Unlock()
	n.last.log()
}

// endAll ends every interval and returns the lines to log.
func (c *counts) endAll() (all []leftOut) {
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
