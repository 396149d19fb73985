// Package bench loads any SOCKS5 server, or the bare network, and says what
// passed: round trips, loss, reordering, latency, and what the processes in
// between spent on it. It brings the far end too (Echo). It must not know whose
// server it is.
//
// What measures has to cost little: datagrams are read and written in batches,
// associations share their payload, and no goroutine belongs to one of them.
package bench

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"time"

	"wmproxy/socks"
)

// Bounds of what may be asked for.
const (
	MaxAssociations = 60_000
	MaxWindow       = 4096
	MaxRate         = 5_000_000 // datagrams per second
	MaxStreams      = 1024
	MaxWorkers      = 1024
	MaxDuration     = 24 * time.Hour
	MaxTimeout      = time.Minute
)

// DefaultTimeout is after how long a datagram that did not come back is lost.
const DefaultTimeout = time.Second

// Way is how a load gets to its target: through a SOCKS5 server or straight.
type Way struct {
	Socks              string // the server's HOST:PORT; empty: straight to Target
	Username, Password string // for the server, up to 255 bytes each
	Target             socks.Addr

	// direct is Target as an IP address, when there is no server to resolve it.
	direct netip.AddrPort
}

// String is how the way is named in results.
func (w *Way) String() string {
	if w.Socks == "" {
		return "direct"
	}
	return "socks " + w.Socks
}

// Common is what all loads are told.
type Common struct {
	Way
	Duration time.Duration
	Timeout  time.Duration // of a datagram; 0: DefaultTimeout
	Offload  bool          // hand the kernel several datagrams as one (UDP_SEGMENT), and take them so
	PIDs     []int         // processes to account for

	// Progress, when set, gets a line that is written over and over again.
	Progress io.Writer
}

func (c *Common) timeout() time.Duration {
	if c.Timeout <= 0 {
		return DefaultTimeout
	}
	return c.Timeout
}

// prepare resolves what has to be resolved here.
func (c *Common) prepare(ctx context.Context) error {
	if c.Socks != "" {
		return nil
	}
	c.direct = c.Target.AddrPort()
	if c.Target.IP.IsValid() {
		return nil
	}
	ips, err := resolver.LookupNetIP(ctx, "ip", c.Target.Name)
	if err != nil {
		return fmt.Errorf("%s; write an IP address in --target", dialFailure(c.Target.String(), err))
	}
	c.direct = netip.AddrPortFrom(ips[0].Unmap(), c.Target.Port)
	return nil
}

// Outcome is what all results begin with.
type Outcome struct {
	Load        string  `json:"load"`
	Way         string  `json:"way"`
	Target      string  `json:"target"`
	Seconds     float64 `json:"seconds"`     // that were measured
	Interrupted bool    `json:"interrupted"` // ended before its time

	OwnCPU    float64 `json:"bench_cpu_seconds,omitempty"` // what measuring itself took
	Processes []Usage `json:"processes,omitempty"`         // of Common.PIDs
}

// outcome is the beginning of a load's result.
func (c *Common) outcome(load string) Outcome {
	return Outcome{Load: load, Way: c.Way.String(), Target: c.Target.String()}
}
