package wire

import "github.com/quic-go/quic-go/quicvarint"

// Probes travel in band, as records of flow 0, so that they meet what datagrams
// meet and ride for nothing in a bundle that leaves anyway. The client pings each
// carrier and the server answers each ping with a pong of the same size:
//
//	+---------+-----------+------------------+----------------------+
//	| type u8 | id varint | sent, 5 varints  | received, 5 varints  |
//	+---------+-----------+------------------+----------------------+
//	| limit varint | epoch varint | segments varint | resent varint |
//	+--------------+--------------+-----------------+---------------+
//
// Sent and received count the bundles of this carrier before the one that holds
// the probe: all, and those larger than each of SizeClasses. limit is the largest
// bundle in bytes that the sender wants to get, 0 for any. epoch is that of the
// last PREFER heard; segments and resent are the TCP connection's, 0 on others.
type Probe struct {
	Pong     bool
	ID       uint64
	Sent     Counts
	Received Counts
	Limit    uint64
	Epoch    uint64
	Segments uint64
	Resent   uint64
}

const (
	probePing = 1
	probePong = 2

	// maxProbeLen bounds an encoded probe in bytes.
	maxProbeLen = 1 + 8*(1+2*len(Counts{})+4)

	// FullProbe bounds a full-size probe in bytes: no path of datagrams is larger.
	FullProbe = 1500
)

// SizeClasses are the bundle sizes in bytes above which bundles are counted, so
// that a path that eats large packets shows. Each is a little below what an
// Ethernet path shrinks to under common tunnels.
var SizeClasses = [...]int{1100, 1200, 1300, 1400}

// Counts is a number of bundles: all, then those larger than each size class.
type Counts [1 + len(SizeClasses)]uint64

// Minus is what was counted since d.
func (c Counts) Minus(d Counts) Counts {
	for i := range c {
		c[i] -= d[i]
	}
	return c
}

// Append appends the probe as a whole record.
func (p *Probe) Append(b []byte) []byte {
	var body [maxProbeLen]byte
	v := append(body[:0], probePing)
	if p.Pong {
		v[0] = probePong
	}
	v = quicvarint.Append(v, p.ID)
	for _, n := range p.Sent {
		v = quicvarint.Append(v, n)
	}
	for _, n := range p.Received {
		v = quicvarint.Append(v, n)
	}
	for _, n := range [...]uint64{p.Limit, p.Epoch, p.Segments, p.Resent} {
		v = quicvarint.Append(v, n)
	}
	return append(AppendRecordHeader(b, 0, len(v)), v...)
}

// ParseProbe decodes the body of a record of flow 0. Not ok is a probe that is
// cut short, or something of a later version: both are skipped.
func ParseProbe(body []byte) (p Probe, ok bool) {
	f := Fields{B: body}
	switch f.bytes(1)[0] {
	case probePing:
	case probePong:
		p.Pong = true
	default:
		return p, false
	}
	p.ID = f.Varint()
	for i := range p.Sent {
		p.Sent[i] = f.Varint()
	}
	for i := range p.Received {
		p.Received[i] = f.Varint()
	}
	p.Limit, p.Epoch, p.Segments, p.Resent = f.Varint(), f.Varint(), f.Varint(), f.Varint()
	return p, f.Err == nil
}
