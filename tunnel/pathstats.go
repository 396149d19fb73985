package tunnel

import "time"

// PathStats is what a carrier's transport has counted since it began. What it does
// not tell is zero.
type PathStats struct {
	RTT time.Duration // smoothed

	// Bytes of the whole connection: datagrams, streams and control, with the
	// transport's own framing, but without the headers of TCP, UDP and IP.
	BytesUp, BytesDown uint64

	// PacketsUp are QUIC packets or TCP segments with data, those sent again
	// among them. PacketsLost are what QUIC takes for lost, which may become fewer
	// again, and what TCP has sent again.
	PacketsUp, PacketsLost uint64
}

// pathStats is a carrier whose transport counts. Asking takes a lock or a system
// call: not for every bundle.
type pathStats interface {
	PathStats() PathStats
}

var (
	_ pathStats = (*quicCarrier)(nil)
	_ pathStats = (*yamuxCarrier)(nil)
)

// PathStats is what QUIC counts.
func (c *quicCarrier) PathStats() PathStats {
	s := c.conn.ConnectionStats()
	return PathStats{
		RTT: s.SmoothedRTT, BytesUp: s.BytesSent, BytesDown: s.BytesReceived,
		PacketsUp: s.PacketsSent, PacketsLost: s.PacketsLost,
	}
}

// PathStats is what TCP counts; zero where the system does not tell.
func (c *yamuxCarrier) PathStats() PathStats { return tcpPathStats(c.conn.raw) }

// PathStats is what the carrier's transport counts; zero where it does not.
func (p *Path) PathStats() PathStats {
	if c, ok := p.c.(pathStats); ok {
		return c.PathStats()
	}
	return PathStats{}
}
