// Package status reports the state of a running client, server or proxy to its operator:
// the report, the socket in the state directory that serves it, and its text for people.
// It must not know how the figures came about.
package status

import (
	"cmp"
	"os"
	"slices"
	"time"

	"wmproxy/internal/stats"
	"wmproxy/internal/user"
	"wmproxy/tunnel"
)

// Values of Report.Role.
const (
	Client = "client"
	Server = "server"
	Proxy  = "proxy"
)

// maxListed bounds each list of a report. The totals are not bounded.
const maxListed = 1000

// Report is the state of a process. It contains no secrets. Its parts are read one
// after the other, so they may disagree slightly.
type Report struct {
	Role    string    `json:"role"`
	PID     int       `json:"pid"`
	At      time.Time `json:"at"`
	Started time.Time `json:"started"`
	Listen  string    `json:"listen"` // for applications, or on the server for clients

	Memory *Memory `json:"memory,omitempty"` // nil if there is no limit

	Total Total  `json:"total"`           // since the start
	Users []User `json:"users,omitempty"` // who may come in, by name

	Sessions      []Session `json:"sessions"` // empty on a proxy
	SessionsTotal int       `json:"sessions_total"`

	Associations      []Association `json:"associations"` // busiest first
	AssociationsTotal int           `json:"associations_total"`

	Events []Event `json:"events"` // the last ones, oldest first
}

// Memory is the memory that a process uses for its peers, in bytes.
type Memory struct {
	Used   int64  `json:"used"`
	Limit  int64  `json:"limit"`
	Resets uint64 `json:"resets"` // streams and connections reset to free memory
}

// Session is a session of a client with a server.
type Session struct {
	ID     string `json:"id"`               // the same on both sides
	Server string `json:"server,omitempty"` // on the client, as in its link
	User   string `json:"user"`

	// Preferred is set, on the client, if new associations and streams use this session.
	Preferred bool `json:"preferred,omitempty"`
	// Leaving is set if the server is about to stop.
	Leaving bool `json:"leaving,omitempty"`

	AgeSeconds      float64 `json:"age_seconds"`
	Attached        bool    `json:"attached"`
	DetachedSeconds float64 `json:"detached_seconds,omitempty"` // since the last carrier ended
	State           string  `json:"state,omitempty"`            // on the client, in words

	Datagrams Choice    `json:"datagrams"`
	Streams   Choice    `json:"streams"` // for new streams; open ones do not move
	Carriers  []Carrier `json:"carriers"`

	Associations int               `json:"associations"`
	OpenStreams  int               `json:"open_streams"`
	Drops        map[string]uint64 `json:"drops,omitempty"` // datagrams that the tunnel dropped here, by reason
}

// Choice is the carrier that serves a class of traffic.
type Choice struct {
	Carrier   uint64 `json:"carrier"` // its number; 0 if there is none
	Transport string `json:"transport,omitempty"`
	Why       string `json:"why"`
}

// Carrier is a connection of a session.
type Carrier struct {
	Number     uint64  `json:"number"`
	Transport  string  `json:"transport"` // quic or yamux
	Local      string  `json:"local"`
	Remote     string  `json:"remote"`
	AgeSeconds float64 `json:"age_seconds"`
	// HeardSeconds is the time since anything arrived.
	HeardSeconds float64 `json:"heard_seconds"`
	RTTMillis    float64 `json:"rtt_ms,omitempty"`

	Health           string `json:"health"`           // good or suspect
	Reason           string `json:"reason,omitempty"` // for being suspect
	ServesDatagrams  bool   `json:"serves_datagrams"`
	ServesNewStreams bool   `json:"serves_new_streams"`
	OpenStreams      int    `json:"open_streams"`

	// SmallSegments is set, on the client, if TCP needed small segments to connect.
	SmallSegments bool `json:"small_segments,omitempty"`

	// Congestion is the kernel's congestion control for the connection, if it is TCP.
	Congestion string `json:"congestion,omitempty"`

	// Loss is the share, 0 to 1, of bundles lost recently in the worse direction, as
	// measured by the client.
	Loss *float64 `json:"loss,omitempty"`

	// Counters of the transport: bytes, QUIC packets or TCP segments with data, and how
	// many of those were lost or retransmitted.
	BytesUp     uint64 `json:"bytes_up"`
	BytesDown   uint64 `json:"bytes_down"`
	PacketsUp   uint64 `json:"packets_up,omitempty"`
	PacketsLost uint64 `json:"packets_lost,omitempty"`

	// Counters of datagrams alone. A bundle is several datagrams or a part of one.
	BundlesUp       uint64 `json:"bundles_up"`
	BundlesDown     uint64 `json:"bundles_down"`
	BundleBytesUp   uint64 `json:"bundle_bytes_up"`
	BundleBytesDown uint64 `json:"bundle_bytes_down"`
}

// Association is a UDP association: its entrance on the client, its exit on the
// server, both on a proxy.
type Association struct {
	User        string            `json:"user"`
	Client      string            `json:"client,omitempty"`  // the application's address
	Exit        string            `json:"exit,omitempty"`    // the socket that targets see; its address may be a wildcard
	Session     string            `json:"session,omitempty"` // the id of its session
	Flow        uint64            `json:"flow"`              // its number in the session
	AgeSeconds  float64           `json:"age_seconds"`
	IdleSeconds *float64          `json:"idle_seconds,omitempty"` // since the application last sent, roughly
	Up          stats.Traffic     `json:"up"`
	Down        stats.Traffic     `json:"down"`
	Drops       map[string]uint64 `json:"drops,omitempty"` // datagrams dropped here, by reason
}

// Event is a line of the list of events for the operator.
type Event struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
}

// Total is everything that has passed, of sessions and associations that have ended too.
type Total struct {
	Up              stats.Traffic     `json:"up"` // datagrams
	Down            stats.Traffic     `json:"down"`
	StreamBytesUp   uint64            `json:"stream_bytes_up"`
	StreamBytesDown uint64            `json:"stream_bytes_down"`
	Drops           map[string]uint64 `json:"drops,omitempty"` // datagrams, by reason
}

// User is one user's total.
type User struct {
	Name string `json:"name"`
	Total
}

// Process is a process of which reports are made.
type Process struct {
	Role    string
	Started time.Time
	Listen  string
	Budget  *tunnel.Budget
	Events  *Events
	Total   *stats.Total
	Users   *user.Set
}

// Report returns a report on p now. Its lists are bounded. It sorts associations, so
// that the busiest are listed.
func (p *Process) Report(sessions []Session, associations []Association) Report {
	r := Report{
		Role: p.Role, PID: os.Getpid(), At: time.Now(), Started: p.Started, Listen: p.Listen,
		Memory: fromBudget(p.Budget.Status()), Total: fromTotal(p.Total), Events: p.Events.List(),
	}
	all := p.Users.All()
	for _, u := range all[:min(len(all), maxListed)] {
		r.Users = append(r.Users, User{u.Name, fromTotal(&u.Total)})
	}
	r.setSessions(sessions)
	r.setAssociations(associations)
	return r
}

func fromTotal(t *stats.Total) Total {
	s := t.Snapshot()
	up, down := t.Streams()
	return Total{Up: s.Up, Down: s.Down, StreamBytesUp: up, StreamBytesDown: down, Drops: s.Drops.ByReason()}
}

func (r *Report) setSessions(all []Session) {
	r.SessionsTotal = len(all)
	r.Sessions = all[:min(len(all), maxListed)]
	if r.Sessions == nil {
		r.Sessions = []Session{} // no null in JSON
	}
}

func (r *Report) setAssociations(all []Association) {
	slices.SortFunc(all, func(a, b Association) int {
		return cmp.Or(
			cmp.Compare(b.Up.Datagrams+b.Down.Datagrams, a.Up.Datagrams+a.Down.Datagrams),
			cmp.Compare(b.AgeSeconds, a.AgeSeconds),
			cmp.Compare(a.Flow, b.Flow),
		)
	})
	r.AssociationsTotal = len(all)
	r.Associations = all[:min(len(all), maxListed)]
	if r.Associations == nil {
		r.Associations = []Association{}
	}
}

// Seconds returns d in seconds, rounded to milliseconds.
func Seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }

// Add adds counts by reason to drops and returns drops, which it makes if it is nil.
func Add(drops, more map[string]uint64) map[string]uint64 {
	for reason, n := range more {
		if drops == nil {
			drops = make(map[string]uint64)
		}
		drops[reason] += n
	}
	return drops
}
