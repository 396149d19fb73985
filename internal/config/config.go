// Package config is one tree of options: Client, Server and Proxy, with defaults, checks
// and the text form of every value. The comment on a field is written for the user. It
// must not know flags, files, or the packages that use an option.
//
// A field is named by its path, the names of its yaml tags with dots between them:
// entrance.udp_from. Its default is the text of its default tag, empty for zero or none. A
// new option is a field here with a comment and a default, a flag in cmd/wmproxy, and its
// use.
package config

import (
	"net/netip"
	"time"

	"wmproxy/internal/link"
)

// Client is the options of wmproxy client.
type Client struct {
	// The servers' links, at most 8, the preferred one first.
	Links []link.Link `yaml:"links" default:""`

	// A file with links, one on a line, in place of links.
	LinkFile string `yaml:"link_file" default:""`

	// Which of several servers new flows and streams go to: order (the first that works)
	// or fastest (the one with the lowest round-trip time).
	Pick string `yaml:"pick" default:"order"`

	// Transports of the tunnel: quic, yamux, or auto for both, each falling over to the
	// other.
	Transport string `yaml:"transport" default:"auto"`

	// The transport that TCP prefers: quic, yamux, or auto, which is yamux unless
	// losses make that slow.
	Streams string `yaml:"streams" default:"auto"`

	// When a connection of the tunnel is doubted.
	Timers Timers `yaml:"timers"`

	// The port that applications connect to.
	Entrance Entrance `yaml:"entrance"`

	Process `yaml:",inline"`
}

// Server is the options of wmproxy server.
type Server struct {
	// HOST:PORT to listen on, UDP and TCP; without HOST on every address.
	Listen string `yaml:"listen" default:":8090"`

	// Transports to listen for: quic, yamux.
	Transports []string `yaml:"transports" default:"quic,yamux"`

	// HOST or HOST:PORT that clients reach the server by, for the link. If empty, the
	// address of the default route and the port of listen.
	Advertise string `yaml:"advertise" default:""`

	// The users, in place of one with a random token in the state directory.
	Users []User `yaml:"users" default:""`

	// A file with further users, a NAME:SECRET on each line, read again on SIGHUP.
	TokenFile string `yaml:"token_file" default:""`

	// A PEM file with the certificate chain of a public CA, read again when it changes. If
	// empty, clients check the pin in the link.
	Cert string `yaml:"cert" default:""`

	// A PEM file with the certificate's private key.
	Key string `yaml:"key" default:""`

	// How long the associations of a client that lost its connection are kept, with their
	// addresses; 0 ends them at once.
	Hold time.Duration `yaml:"hold" default:"2m"`

	// How long SIGTERM waits for clients to go elsewhere; 0 ends at once.
	Drain time.Duration `yaml:"drain" default:"0s"`

	// After how long without a sign of life a connection of the tunnel is closed.
	Dead time.Duration `yaml:"dead" default:"30s"`

	// Where flows and streams may go.
	Exit Exit `yaml:"exit"`

	Process `yaml:",inline"`
}

// Proxy is the options of wmproxy proxy.
type Proxy struct {
	// The port that applications connect to.
	Entrance Entrance `yaml:"entrance"`

	// Where flows and streams may go.
	Exit Exit `yaml:"exit"`

	Process `yaml:",inline"`
}

// DefaultClient returns the default options of a client, which lack links.
func DefaultClient() (c Client) {
	setDefaults(&c)
	return c
}

// DefaultServer returns the default options of a server.
func DefaultServer() (s Server) {
	setDefaults(&s)
	return s
}

// DefaultProxy returns the default options of a proxy.
func DefaultProxy() (p Proxy) {
	setDefaults(&p)
	p.Entrance.Listen = "127.0.0.1:8090"
	return p
}

// User is one who may use a server.
type User struct {
	// The name, 1 to 64 letters, digits, dots, hyphens and underscores.
	Name string `yaml:"name"`

	// The secret that proves it, 1 to 256 characters without spaces.
	Token Secret `yaml:"token"`
}

// Entrance is the options of a port that applications connect to.
type Entrance struct {
	// HOST:PORT to listen on.
	Listen string `yaml:"listen" default:"127.0.0.1:1080"`

	// The user name that applications are asked for, 1 to 255 bytes, with pass or
	// pass_file.
	User string `yaml:"user" default:""`

	// The password that applications are asked for, 1 to 255 bytes.
	Pass Secret `yaml:"pass" default:""`

	// A file whose first line is the password.
	PassFile string `yaml:"pass_file" default:""`

	// Whether to listen beyond loopback without a password, for everyone who can reach the
	// port.
	Open bool `yaml:"open" default:"false"`

	// The address that applications are told to send their UDP to, if they know this
	// machine by another than the one they connected to (NAT, Docker).
	UDPAdvertise netip.Addr `yaml:"udp_advertise" default:""`

	// The UDP ports of associations, such as 40000-40999, or one port that they share. If
	// empty, the system chooses.
	UDPPorts PortRange `yaml:"udp_ports" default:""`

	// Networks from which an association takes UDP, beside the address that asked for it.
	UDPFrom []netip.Prefix `yaml:"udp_from" default:""`

	// Whether an application that sent UDP to a name gets answers from that name (name) or
	// from the address behind it (address).
	UDPAnswers string `yaml:"udp_answers" default:"name"`
}

// Exit is the options of flows and streams that leave from this machine.
type Exit struct {
	// Networks to let through that are refused by default (private, loopback, this
	// machine).
	Allow []netip.Prefix `yaml:"allow" default:""`

	// Networks to refuse, even if allow lets them through.
	Deny []netip.Prefix `yaml:"deny" default:""`

	// How long the socket of a UDP association that neither sends nor hears anything stays
	// open.
	UDPIdle time.Duration `yaml:"udp_idle" default:"5m"`

	// The remotes whose datagrams reach an association (RFC 4787 section 5):
	// endpoint-independent, address or address-and-port.
	Filtering Filtering `yaml:"filtering" default:"endpoint-independent"`
}

// Timers is when a connection of the tunnel is doubted.
type Timers struct {
	// Leave a connection in use that gives no sign of life, or loses half, for so long.
	Suspect time.Duration `yaml:"suspect" default:"2s"`

	// The same while nothing uses it.
	SuspectIdle time.Duration `yaml:"suspect_idle" default:"20s"`

	// Close a connection without a sign of life for so long, and reset its TCP streams.
	Dead time.Duration `yaml:"dead" default:"30s"`

	// Return to a connection that has worked well for so long. Each relapse doubles it, up
	// to a minute.
	Steady time.Duration `yaml:"steady" default:"5s"`
}

// Process is the options of every process that stays.
type Process struct {
	// The directory for what is kept, and for the socket that wmproxy status asks on. If
	// empty, /var/lib/wmproxy/COMMAND for root, else ~/.local/state/wmproxy/COMMAND.
	StateDir string `yaml:"state_dir" default:""`

	// The most memory to hold for peers, such as 256MiB: bytes that wait for slow readers,
	// here and in the kernel. If empty, a quarter of the machine's or the cgroup's.
	Memory Size `yaml:"memory" default:""`

	// Whether never to hand the kernel several UDP datagrams as one, for network cards that
	// damage them.
	NoOffload bool `yaml:"no_offload" default:"false"`

	// A loopback address and port to serve Go profiles on; every user of this machine can
	// read them. If empty, none are served.
	Debug netip.AddrPort `yaml:"debug" default:""`

	// The log, which goes to standard error.
	Log Log `yaml:"log"`
}

// Log is the options of the log.
type Log struct {
	// console, json, or auto: console on a terminal, json otherwise.
	Format string `yaml:"format" default:"auto"`

	// debug, info, warn or error.
	Level string `yaml:"level" default:"info"`
}

// Transports of the tunnel, and what stands for the choice among them.
const (
	Auto  = "auto"
	QUIC  = "quic"
	Yamux = "yamux"
)

// Values of Client.Pick.
const (
	PickOrder   = "order"
	PickFastest = "fastest"
)

// Values of Entrance.UDPAnswers.
const (
	AnswersByName    = "name"
	AnswersByAddress = "address"
)

// Values of Log.Format; Auto is the third.
const (
	LogConsole = "console"
	LogJSON    = "json"
)
