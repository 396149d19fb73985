package tunnel

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
// sent and received count the bundles of this carrier before the one that holds
// the probe: all, and those larger than each of sizeClasses. limit is the largest
// bundle in bytes that the sender wants to get, 0 for any. epoch is that of the
// last PREFER heard; segments and resent are the TCP connection's, 0 on others.
type probe struct {
	pong     bool
	id       uint64
	sent     counts
	received counts
	limit    uint64
	epoch    uint64
	segments uint64
	resent   uint64
}

const (
	probePing = 1
	probePong = 2

	// maxProbeLen bounds an encoded probe in bytes.
	maxProbeLen = 1 + 8*(1+2*len(counts{})+4)

	// fullProbe bounds a full-size probe in bytes: no path of datagrams is larger.
	fullProbe = 1500
)

// sizeClasses are the bundle sizes in bytes above which bundles are counted, so
// that a path that eats large packets shows. Each is a little below what an
// Ethernet path shrinks to under common tunnels.
var sizeClasses = [...]int{1100, 1200, 1300, 1400}

// counts is a number of bundles: all, then those larger than each size class.
type counts [1 + len(sizeClasses)]uint64

// minus is what was counted since d.
func (c counts) minus(d counts) counts {
	for i := range c {
		c[i] -= d[i]
	}
	return c
}

// append appends the probe as a whole record.
func (p *probe) append(b []byte) []byte {
	var body [maxProbeLen]byte
	v := append(body[:0], probePing)
	if p.pong {
		v[0] = probePong
	}
	v = quicvarint.Append(v, p.id)
	for _, n := range p.sent {
		v = quicvarint.Append(v, n)
	}
	for _, n := range p.received {
		v = quicvarint.Append(v, n)
	}
	for _, n := range [...]uint64{p.limit, p.epoch, p.segments, p.resent} {
		v = quicvarint.Append(v, n)
	}
	return append(appendRecordHeader(b, 0, len(v)), v...)
}

// parseProbe decodes the body of a record of flow 0. Not ok is a probe that is
// cut short, or something of a later version: both are skipped.
func parseProbe(body []byte) (p probe, ok bool) {
	f := fields{b: body}
	switch f.bytes(1)[0] {
	case probePing:
	case probePong:
		p.pong = true
	default:
		return p, false
	}
	p.id = f.varint()
	for i := range p.sent {
		p.sent[i] = f.varint()
	}
	for i := range p.received {
		p.received[i] = f.varint()
	}
	p.limit, p.epoch, p.segments, p.resent = f.varint(), f.varint(), f.varint(), f.varint()
	return p, f.err == nil
}
