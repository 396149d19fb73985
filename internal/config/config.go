// Package config is one tree of options: Client, Server and Proxy, with defaults, checks
// and the text form of every value. The comment on a field is written for the user. It
// must not know flags, files, or the packages that use an option.
//
// A field is named by its path, the names of its yaml tags with dots between them:
// entrance.udp_from. A new option is a field here with a comment and a default, a flag in
// cmd/wmproxy, and its use.
package config

import (
	"net/netip"
	"time"

	"wmproxy/internal/link"
)

// Client is the options of wmproxy client.
type Client struct {
	// The servers' links, at most 8, the preferred one first.
	Links []link.Link `yaml:"links"`

	// A file with links, one on a line, in place of links.
	LinkFile string `yaml:"link_file"`

	// Which of several servers new flows and streams go to: order (the first that works)
	// or fastest (the one with the lowest round-trip time).
	Pick string `yaml:"pick"`

	// Transports of the tunnel: quic, yamux, or auto for both, each falling over to the
	// other.
	Transport string `yaml:"transport"`

	// The transport that TCP prefers: quic, yamux, or auto, which is yamux while it seldom
	// has to send again.
	Streams string `yaml:"streams"`

	// When a connection of the tunnel is doubted.
	Timers Timers `yaml:"timers"`

	// The port that applications connect to.
	Entrance Entrance `yaml:"entrance"`

	Process `yaml:",inline"`
}

// Server is the options of wmproxy server.
type Server struct {
	// HOST:PORT to listen on, UDP and TCP; without HOST on every address.
	Listen string `yaml:"listen"`

	// Transports to listen for: quic, yamux.
	Transports []string `yaml:"transports"`

	// HOST or HOST:PORT that clients reach the server by, for the link. If empty, the
	// address of the default route and the port of listen.
	Advertise string `yaml:"advertise"`

	// The users, in place of one with a random token in the state directory.
	Users []User `yaml:"users"`

	// A file with further users, a NAME:SECRET on each line, read again on SIGHUP.
	TokenFile string `yaml:"token_file"`

	// A PEM file with the certificate chain of a public CA, read again when it changes. If
	// empty, clients check the pin in the link.
	Cert string `yaml:"cert"`

	// A PEM file with the certificate's private key.
	Key string `yaml:"key"`

	// How long the associations of a client that lost its connection are kept, with their
	// addresses; 0 ends them at once.
	Hold time.Duration `yaml:"hold"`

	// How long SIGTERM waits for clients to go elsewhere; 0 ends at once.
	Drain time.Duration `yaml:"drain"`

	// After how long without a sign of life a connection of the tunnel is closed.
	Dead time.Duration `yaml:"dead"`

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
	Listen string `yaml:"listen"`

	// The user name that applications are asked for, 1 to 255 bytes, with pass or
	// pass_file.
	User string `yaml:"user"`

	// The password that applications are asked for, 1 to 255 bytes.
	Pass Secret `yaml:"pass"`

	// A file whose first line is the password.
	PassFile string `yaml:"pass_file"`

	// Whether to listen beyond loopback without a password, for everyone who can reach the
	// port.
	Open bool `yaml:"open"`

	// The address that applications are told to send their UDP to, if they know this
	// machine by another than the one they connected to (NAT, Docker).
	UDPAdvertise netip.Addr `yaml:"udp_advertise"`

	// The UDP ports of associations, such as 40000-40999, or one port that they share. If
	// empty, the system chooses.
	UDPPorts PortRange `yaml:"udp_ports"`

	// Networks from which an association takes UDP, beside the address that asked for it.
	UDPFrom []netip.Prefix `yaml:"udp_from"`

	// Whether an application that sent UDP to a name gets answers from that name (name) or
	// from the address behind it (address).
	UDPAnswers string `yaml:"udp_answers"`
}

// Exit is the options of flows and streams that leave from this machine.
type Exit struct {
	// Networks to let through that are refused by default (private, loopback, this
	// machine).
	Allow []netip.Prefix `yaml:"allow"`

	// Networks to refuse, even if allow lets them through.
	Deny []netip.Prefix `yaml:"deny"`

	// How long the socket of a UDP association that neither sends nor hears anything stays
	// open.
	UDPIdle time.Duration `yaml:"udp_idle"`

	// The remotes whose datagrams reach an association (RFC 4787 section 5):
	// endpoint-independent, address or address-and-port.
	Filtering Filtering `yaml:"filtering"`
}

// Timers is when a connection of the tunnel is doubted.
type Timers struct {
	// Leave a connection in use that gives no sign of life, or loses half, for so long.
	Suspect time.Duration `yaml:"suspect"`

	// The same while nothing uses it.
	SuspectIdle time.Duration `yaml:"suspect_idle"`

	// Close a connection without a sign of life for so long, and reset its TCP streams.
	Dead time.Duration `yaml:"dead"`

	// Return to a connection that has worked well for so long. Each relapse doubles it, up
	// to a minute.
	Steady time.Duration `yaml:"steady"`
}

// Process is the options of every process that stays.
type Process struct {
	// The directory for what is kept, and for the socket that wmproxy status asks on. If
	// empty, /var/lib/wmproxy/COMMAND for root, else ~/.local/state/wmproxy/COMMAND.
	StateDir string `yaml:"state_dir"`

	// The most memory to hold for peers, such as 256MiB: bytes that wait for slow readers,
	// here and in the kernel. If empty, a quarter of the machine's or the cgroup's.
	Memory Size `yaml:"memory"`

	// Whether never to hand the kernel several UDP datagrams as one, for network cards that
	// damage them.
	NoOffload bool `yaml:"no_offload"`

	// A loopback address and port to serve Go profiles on; every user of this machine can
	// read them. If empty, none are served.
	Debug netip.AddrPort `yaml:"debug"`

	// The log, which goes to standard error.
	Log Log `yaml:"log"`
}

// Log is the options of the log.
type Log struct {
	// console, json, or auto: console on a terminal, json otherwise.
	Format string `yaml:"format"`

	// debug, info, warn or error.
	Level string `yaml:"level"`
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
