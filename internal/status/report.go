// Package status is what a running client, server or proxy tells its operator: the
// document, the socket in the state directory that it is asked for on, and its
// rendering for people. It must not know how anything in it came about.
package status

import (
	"cmp"
	"slices"
	"time"
)

// What Report.Role may be.
const (
	Client = "client"
	Server = "server"
	Proxy  = "proxy"
)

// MaxListed bounds each list of a report. The totals count all.
const MaxListed = 1000

// Report is a process at one moment. It holds no secrets. Its parts are read one
// after the other, so they may disagree by what happened meanwhile.
type Report struct {
	Role    string    `json:"role"`
	PID     int       `json:"pid"`
	At      time.Time `json:"at"`
	Started time.Time `json:"started"`
	Listen  string    `json:"listen"` // for applications, or on the server for clients

	Memory *Memory `json:"memory,omitempty"` // held for peers; nil if it has no bound

	Sessions      []Session `json:"sessions"` // none for a proxy
	SessionsTotal int       `json:"sessions_total"`

	Associations      []Association `json:"associations"` // the busiest first
	AssociationsTotal int           `json:"associations_total"`

	Events []Event `json:"events"` // the last ones, oldest first
}

// Memory is the memory a process holds for its peers, in bytes.
type Memory struct {
	Used   int64  `json:"used"`
	Limit  int64  `json:"limit"`
	Resets uint64 `json:"resets"` // streams and connections that had to go
}

// Session is one client with one server.
type Session struct {
	ID     string `json:"id"`               // the same on both sides
	Server string `json:"server,omitempty"` // on the client, as its link names it
	User   string `json:"user"`

	// Preferred says, on the client, that new associations and streams go here.
	Preferred bool `json:"preferred,omitempty"`
	// Leaving says that the server is about to stop.
	Leaving bool `json:"leaving,omitempty"`

	AgeSeconds      float64 `json:"age_seconds"`
	Attached        bool    `json:"attached"`
	DetachedSeconds float64 `json:"detached_seconds,omitempty"` // how long nothing has been attached
	State           string  `json:"state,omitempty"`            // on the client, in words

	Datagrams Choice    `json:"datagrams"`
	Streams   Choice    `json:"streams"` // new ones: those that are open stay where they are
	Carriers  []Carrier `json:"carriers"`

	Associations int               `json:"associations"`
	OpenStreams  int               `json:"open_streams"`
	Drops        map[string]uint64 `json:"drops,omitempty"` // datagrams that the tunnel dropped here, by reason
}

// Choice is the carrier that serves a class of traffic.
type Choice struct {
	Carrier   uint64 `json:"carrier"` // its number; 0 is none
	Transport string `json:"transport,omitempty"`
	Why       string `json:"why"`
}

// Carrier is one connection of a session.
type Carrier struct {
	Number     uint64  `json:"number"`
	Transport  string  `json:"transport"` // quic or yamux
	Local      string  `json:"local"`
	Remote     string  `json:"remote"`
	AgeSeconds float64 `json:"age_seconds"`
	// HeardSeconds is how long ago anything last arrived.
	HeardSeconds float64 `json:"heard_seconds"`
	RTTMillis    float64 `json:"rtt_ms,omitempty"` // milliseconds

	Health           string `json:"health"`           // good or suspect
	Reason           string `json:"reason,omitempty"` // why it is suspect
	ServesDatagrams  bool   `json:"serves_datagrams"`
	ServesNewStreams bool   `json:"serves_new_streams"`
	OpenStreams      int    `json:"open_streams"`

	// SmallSegments is set, on the client, if TCP passed in small segments alone.
	SmallSegments bool `json:"small_segments,omitempty"`

	// Loss is the share, 0 to 1, of bundles that got lost lately, in the worse of the
	// two directions; the client judges it.
	Loss *float64 `json:"loss,omitempty"`

	// Of the whole connection, as the transport counts: QUIC packets or TCP segments
	// with data, and how many of them were lost or had to be sent again.
	BytesUp     uint64 `json:"bytes_up"`
	BytesDown   uint64 `json:"bytes_down"`
	PacketsUp   uint64 `json:"packets_up,omitempty"`
	PacketsLost uint64 `json:"packets_lost,omitempty"`

	// Of datagrams alone: what holds several of them, or a part of one.
	BundlesUp       uint64 `json:"bundles_up"`
	BundlesDown     uint64 `json:"bundles_down"`
	BundleBytesUp   uint64 `json:"bundle_bytes_up"`
	BundleBytesDown uint64 `json:"bundle_bytes_down"`
}

// Association is a UDP association: on the client its entrance, on the server its
// exit, on a proxy both.
type Association struct {
	User        string            `json:"user"`
	Client      string            `json:"client,omitempty"`  // where the application asks from
	Exit        string            `json:"exit,omitempty"`    // the socket that targets see; its port counts
	Session     string            `json:"session,omitempty"` // the id of the one it uses
	Flow        uint64            `json:"flow"`              // its number in the session
	AgeSeconds  float64           `json:"age_seconds"`
	IdleSeconds *float64          `json:"idle_seconds,omitempty"` // roughly, since the application last sent
	Up          Traffic           `json:"up"`
	Down        Traffic           `json:"down"`
	Drops       map[string]uint64 `json:"drops,omitempty"` // datagrams dropped here, by reason
}

// Traffic is what passed: datagrams and the bytes of their payloads.
type Traffic struct {
	Datagrams uint64 `json:"datagrams"`
	Bytes     uint64 `json:"bytes"`
}

// Event is something that an operator may want to know of.
type Event struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
}

// SetSessions sets the sessions, as many as a report lists.
func (r *Report) SetSessions(all []Session) {
	r.SessionsTotal = len(all)
	r.Sessions = all[:min(len(all), MaxListed)]
	if r.Sessions == nil {
		r.Sessions = []Session{} // no null in JSON
	}
}

// SetAssociations sets the associations: the busiest, as many as a report lists.
func (r *Report) SetAssociations(all []Association) {
	slices.SortFunc(all, func(a, b Association) int {
		return cmp.Or(
			cmp.Compare(b.Up.Datagrams+b.Down.Datagrams, a.Up.Datagrams+a.Down.Datagrams),
			cmp.Compare(b.AgeSeconds, a.AgeSeconds),
			cmp.Compare(a.Flow, b.Flow),
		)
	})
	r.AssociationsTotal = len(all)
	r.Associations = all[:min(len(all), MaxListed)]
	if r.Associations == nil {
		r.Associations = []Association{}
	}
}

// Seconds is d for the document, to the millisecond.
func Seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }

// Add adds counts by reason to drops, which it makes where it has to.
func Add(drops, more map[string]uint64) map[string]uint64 {
	for reason, n := range more {
		if drops == nil {
			drops = make(map[string]uint64)
		}
		drops[reason] += n
	}
	return drops
}
