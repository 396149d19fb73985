package tunnel

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"wmproxy/internal/stats"
	"wmproxy/tunnel/carrier"
)

// SessionStatus is a session at one moment, for an operator. Its parts are read one
// after the other, so they may disagree by what happened meanwhile.
type SessionStatus struct {
	ID       string // short form
	User     string // "" on the client
	Age      time.Duration
	Attached bool
	Detached time.Duration // how long nothing has been attached
	Leaving  bool          // the server has told that it will soon be gone

	Datagrams, Streams Choice
	Carriers           []CarrierStatus // oldest first

	Flows       int
	OpenStreams int
	Drops       stats.Dropped
}

// Choice is the carrier that serves datagrams or new streams, and why that one.
type Choice struct {
	Carrier uint64 // its number; 0 is none
	Why     string
}

// What CarrierStatus.Health may be.
const (
	HealthGood    = "good"
	HealthSuspect = "suspect"
)

// CarrierStatus is one attached carrier.
type CarrierStatus struct {
	Number    uint64 // rises with each attempt to attach
	Kind      carrier.Kind
	Local     net.Addr
	Remote    net.Addr
	Age       time.Duration
	Heard     time.Duration // how long ago anything last came
	Datagrams bool          // it serves them
	Streams   bool          // it serves new ones

	// RTT is that of the last ping, on the side that pings; else the transport's; 0
	// is not known.
	RTT time.Duration

	// Loss is the share of bundles that got lost lately, in the worse of the two
	// directions, which the side that pings judges; nil is not known.
	Loss *float64

	Health string
	Reason string // why it is suspect

	BundlesUp, BundlesDown         uint64
	BundleBytesUp, BundleBytesDown uint64
	OpenStreams                    int
	Path                           carrier.Stats

	// SmallSegments is set on the client if TCP passed in small segments alone.
	SmallSegments bool

	Congestion string // see carrier.Traits
}

// byteCount counts the bytes of bundles both ways.
type byteCount struct{ up, down atomic.Uint64 }

// ID is the session's number; a session that the server no longer knew has a new one.
func (s *Session) ID() SessionID { return s.current().id }

// Problem returns the problem if carriers are attached and none of them is good or on probation, else "". It
// stays the same as long as nothing arrives.
func (s *Session) Problem() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.paths) == 0 || s.healthyLocked(0) {
		return ""
	}
	var heard time.Duration
	var reasons []string
	for _, p := range s.paths {
		heard = max(heard, time.Duration(p.heard.Load()))
		_, why := p.good()
		reasons = append(reasons, fmt.Sprintf("%s %s", p.Kind(), why))
	}
	if s.now()-heard >= s.cfg.Timers.Suspect {
		return "nothing has come since " + s.start.Add(heard).Format(time.TimeOnly)
	}
	return strings.Join(reasons, ", ")
}

// Snapshot is the session now.
func (s *Session) Snapshot() SessionStatus {
	s.mu.Lock()
	datagrams, streams := s.datagramPath, s.streamPath
	st := SessionStatus{
		ID: s.inc.id.String(), User: s.cfg.User.Name, Age: s.now(), Leaving: s.leaving,
		Attached:  len(s.paths) > 0,
		Datagrams: s.choiceLocked(datagrams, s.reason(datagrams, s.highest(byDatagrams)), s.prefer.datagrams),
		Streams:   s.choiceLocked(streams, s.streamsWhy(streams), s.prefer.streams),
		Drops:     s.drops.Dropped(),
	}
	switch {
	case st.Attached:
	case s.detached.IsZero():
		st.Detached = st.Age
	default:
		st.Detached = time.Since(s.detached)
	}
	s.mu.Unlock()

	st.Flows = s.Flows()
	for _, p := range s.Paths() {
		c := p.snapshot()
		c.Datagrams, c.Streams = p == datagrams, p == streams
		st.Carriers = append(st.Carriers, c)
		st.OpenStreams += c.OpenStreams
	}
	return st
}

// choiceLocked says why a serves a class; asked is the carrier that the client
// named, on the server.
func (s *Session) choiceLocked(p *Path, why string, asked uint64) Choice {
	switch {
	case p == nil:
		return Choice{Why: "nothing is attached"}
	case !s.server:
	case p.number == asked:
		why = "the client asks for it"
	default:
		why = "the one that the client asks for is not attached"
	}
	return Choice{Carrier: p.number, Why: why}
}

func (p *Path) snapshot() CarrierStatus {
	c := CarrierStatus{
		Number: p.number, Kind: p.Kind(), Local: p.LocalAddr(), Remote: p.RemoteAddr(),
		Age: p.s.now() - p.began, Heard: p.s.now() - time.Duration(p.heard.Load()), RTT: p.RTT(), Health: HealthGood,
		BundlesUp: p.beat.sent[0].Load(), BundlesDown: p.beat.received[0].Load(),
		BundleBytesUp: p.bytes.up.Load(), BundleBytesDown: p.bytes.down.Load(),
		OpenStreams: int(p.streams.Load()), Path: p.c.Stats(), SmallSegments: p.traits.SmallSegments, Congestion: p.traits.Congestion,
	}
	if c.RTT == 0 {
		c.RTT = c.Path.RTT
	}
	if good, why := p.good(); !good {
		c.Health, c.Reason = HealthSuspect, why
	}
	p.beat.mu.Lock()
	defer p.beat.mu.Unlock()
	if p.beat.h != nil {
		if loss, known := p.beat.h.Loss(); known {
			c.Loss = &loss
		}
	}
	return c
}

// SmallSegments reports whether a carrier is attached whose TCP passed in small segments alone: the
// path loses large packets.
func (s *Session) SmallSegments() bool {
	for _, p := range s.Paths() {
		if p.traits.SmallSegments {
			return true
		}
	}
	return false
}
