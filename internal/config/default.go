package config

import (
	"net/netip"
	"time"
)

// Each default names every field of its struct, those that are zero too.

// DefaultClient returns the options of a client that nothing was said to; it has no links.
func DefaultClient() Client {
	return Client{
		Links:     nil,
		LinkFile:  "",
		Pick:      PickOrder,
		Transport: Auto,
		Streams:   Auto,
		Timers: Timers{
			Suspect:     2 * time.Second,
			SuspectIdle: 20 * time.Second,
			Dead:        30 * time.Second,
			Steady:      5 * time.Second,
		},
		Entrance: defaultEntrance("127.0.0.1:1080"),
		Process:  defaultProcess(),
	}
}

// DefaultServer returns the options of a server that nothing was said to.
func DefaultServer() Server {
	return Server{
		Listen:     ":8090",
		Transports: []string{QUIC, Yamux},
		Advertise:  "",
		Users:      nil,
		TokenFile:  "",
		Cert:       "",
		Key:        "",
		Hold:       2 * time.Minute,
		Drain:      0,
		Dead:       30 * time.Second,
		Exit:       defaultExit(),
		Process:    defaultProcess(),
	}
}

// DefaultProxy returns the options of a proxy that nothing was said to.
func DefaultProxy() Proxy {
	return Proxy{
		Entrance: defaultEntrance("127.0.0.1:8090"),
		Exit:     defaultExit(),
		Process:  defaultProcess(),
	}
}

func defaultEntrance(listen string) Entrance {
	return Entrance{
		Listen:       listen,
		User:         "",
		Pass:         "",
		PassFile:     "",
		Open:         false,
		UDPAdvertise: netip.Addr{},
		UDPPorts:     PortRange{},
		UDPFrom:      nil,
		UDPAnswers:   AnswersByName,
	}
}

func defaultExit() Exit {
	return Exit{
		Allow:     nil,
		Deny:      nil,
		UDPIdle:   5 * time.Minute,
		Filtering: EndpointIndependent,
	}
}

func defaultProcess() Process {
	return Process{
		StateDir:  "",
		Memory:    0,
		NoOffload: false,
		Debug:     netip.AddrPort{},
		Log: Log{
			Format: Auto,
			Level:  "info",
		},
	}
}
