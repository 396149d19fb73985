// Package bench loads any SOCKS5 server, or the bare network, and measures round trips,
// loss, reordering, latency, and the CPU time and memory of the processes in between. It
// also has the far end of the loads (Echo). It must not know the implementation of the
// SOCKS5 server.
//
// To measure must cost little: datagrams are read and written in batches, associations
// share their payload, and none has a goroutine of its own.
package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"wmproxy/socks"
)

// Bounds of the configurations.
const (
	MaxAssociations = 60_000
	MaxWindow       = 4096
	MaxRate         = 5_000_000 // datagrams per second
	MaxStreams      = 1024
	MaxWorkers      = 1024
	MaxDuration     = 24 * time.Hour
	MaxTimeout      = time.Minute
)

// DefaultTimeout is the time after which a datagram that did not come back is lost.
const DefaultTimeout = time.Second

// handshakeTimeout bounds the dial and the handshake of an association or a stream.
const handshakeTimeout = 10 * time.Second

// Way is the path of a load to its target: through a SOCKS5 server or direct.
type Way struct {
	Socks              string // HOST:PORT of the server; "" for the direct way
	Username, Password string // for the server, up to 255 bytes each
	Target             socks.Addr

	// direct is the IP address of Target, if there is no server to resolve it.
	direct netip.AddrPort
}

func (w *Way) client() *socks.Client {
	return &socks.Client{Server: w.Socks, Username: w.Username, Password: w.Password, Timeout: handshakeTimeout}
}

// String returns the name of the way in results.
func (w *Way) String() string {
	if w.Socks == "" {
		return "direct"
	}
	return "socks " + w.Socks
}

// Common is the part of the configuration that all loads have.
type Common struct {
	Way
	Duration time.Duration
	Timeout  time.Duration // of a datagram; 0 means DefaultTimeout
	Offload  bool          // pass several datagrams to and from the kernel as one (UDP_SEGMENT)
	PIDs     []int         // processes to measure

	// Warmup is the time for which a load runs before it is measured; datagrams sent in it
	// are not counted. For streams 0 means 300 ms.
	Warmup time.Duration
	// Began, if set, is called when measuring begins.
	Began func()

	// Progress, if set, gets a line that is overwritten again and again.
	Progress io.Writer
}

func (c *Common) timeout() time.Duration {
	if c.Timeout <= 0 {
		return DefaultTimeout
	}
	return c.Timeout
}

// prepare resolves the target for the direct way.
func (c *Common) prepare(ctx context.Context) error {
	if c.Socks != "" {
		return nil
	}
	c.direct = c.Target.AddrPort()
	if c.Target.IP.IsValid() {
		return nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", c.Target.Name)
	if err != nil {
		return fmt.Errorf("%s; write an IP address in --target", dialFailure(c.Target.String(), err))
	}
	c.direct = netip.AddrPortFrom(ips[0].Unmap(), c.Target.Port)
	return nil
}

// Outcome is the part of the result that all loads have.
type Outcome struct {
	Load        string  `json:"load"`
	Way         string  `json:"way"`
	Target      string  `json:"target"`
	Seconds     float64 `json:"seconds"`     // measured
	Interrupted bool    `json:"interrupted"` // ended early

	OwnCPU    float64 `json:"bench_cpu_seconds,omitempty"` // of this process
	Processes []Usage `json:"processes,omitempty"`         // of Common.PIDs
}

// outcome returns an Outcome without figures.
func (c *Common) outcome(load string) Outcome {
	return Outcome{Load: load, Way: c.Way.String(), Target: c.Target.String()}
}
