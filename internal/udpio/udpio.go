// Package udpio is UDP sockets that read and write in batches and call back
// with the datagrams read. It knows nothing of their meaning.
//
// On Linux a few event loops read every [Socket] of the process with recvmmsg
// into buffers that belong to the loop, so an idle socket is a small struct and
// a descriptor. Writes are sendmmsg with UDP_SEGMENT on runs to one
// destination. Elsewhere a goroutine per socket keeps the same contract.
//
// The rules of the data path hold here: no allocation, goroutine or channel
// operation per datagram, and nothing that waits.
package udpio

import "net/netip"

// The largest UDP payloads in bytes: 65,535 less the UDP header and, over IPv4,
// the IPv4 header (RFC 768, RFC 791, RFC 8200).
const (
	MaxDatagram  = MaxDatagram6 - 20 // over IPv4
	MaxDatagram6 = 65535 - 8         // over IPv6
)

// MaxPayload returns the largest UDP payload in bytes for an address.
func MaxPayload(to netip.Addr) int {
	if to.Is6() {
		return MaxDatagram6
	}
	return MaxDatagram
}

// Message is one datagram. On the way out Head and Body are sent one after the
// other as one payload; on the way in Head is nil and Body is the payload.
type Message struct {
	Head []byte
	Body []byte
	// Addr is the source of a datagram that was read and the destination of
	// one to write. An IPv4 address is never IPv4-mapped IPv6.
	Addr netip.AddrPort
	// Local is the address of ours that a datagram was sent to, if the Socket has
	// Config.TellLocal, and the one to send from if it is set. Linux only.
	Local netip.Addr
}

// Len is the payload's size in bytes.
func (m *Message) Len() int { return len(m.Head) + len(m.Body) }

// tooLarge reports that no UDP datagram to m's destination holds the payload.
func (m *Message) tooLarge() bool { return m.Len() > MaxPayload(m.Addr.Addr()) }
