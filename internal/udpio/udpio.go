// Package udpio is UDP sockets that read and write in batches and call back
// with what they read. It knows nothing of what the datagrams mean.
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

// MaxDatagram is the largest UDP payload in bytes, over IPv4 (65,535 less the
// IPv4 and UDP headers). IPv6 carries 20 bytes more; we never send that.
const MaxDatagram = 65507

// Message is one datagram. On the way out Head and Body are sent one after the
// other as one payload; on the way in Head is nil and Body is the payload.
type Message struct {
	Head []byte
	Body []byte
	// Addr is the source of a datagram that was read and the destination of
	// one to write. An IPv4 address is never IPv4-mapped IPv6.
	Addr netip.AddrPort
}

// Len is the payload's size in bytes.
func (m *Message) Len() int { return len(m.Head) + len(m.Body) }
