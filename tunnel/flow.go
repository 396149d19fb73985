package tunnel

import (
	"context"
	"fmt"

	"wmproxy/internal/udpio"
)

// EndCode says why a flow ended; the numbers stand on the wire.
type EndCode uint64

// End codes.
const (
	EndNormal   EndCode = 0 // the association ended
	EndLimit    EndCode = 1 // a limit refused it
	EndUnknown  EndCode = 2 // the receiver has no such flow
	EndShutdown EndCode = 3 // the process or the session ends
)

func (c EndCode) String() string {
	switch c {
	case EndNormal:
		return "normal"
	case EndLimit:
		return "limit reached"
	case EndUnknown:
		return "unknown flow"
	case EndShutdown:
		return "shutdown"
	}
	return fmt.Sprintf("end code %d", uint64(c))
}

// FlowHandler takes what the peer sends on one flow.
type FlowHandler interface {
	// Receive takes datagrams in the order they arrived. The slices may be used,
	// and written to, until it returns. One goroutine at a time calls it, and it must not wait.
	Receive(bodies [][]byte)

	// Ended says that the peer, or the session, ended the flow. It is called at
	// most once, never after End or Forget has returned, and must not wait.
	Ended(code EndCode)
}

// Flow is the tunnel's side of one UDP association. Either side's methods may
// be called from any goroutine.
type Flow struct {
	id uint64
}

// ID is the flow's number; it is never used twice in a client process's life.
func (f *Flow) ID() uint64 { return f.id }

// Send queues datagrams for the peer, in order: Head and Body of each one after
// the other; Addr is not looked at. It copies them and never waits. What the
// bounded queue has no room for pushes out the oldest and is counted.
func (f *Flow) Send(ms []udpio.Message) {}

// End ends the flow on both sides. Further calls do nothing.
func (f *Flow) End(code EndCode) {}

// Forget frees our side of the flow without a word to the peer, whose next
// datagram makes it anew. Exits do this with idle flows.
func (f *Flow) Forget() {}

// Exit is what a session calls when the peer opens something.
type Exit interface {
	// OpenFlow is called with the first datagram of a flow, before it is
	// delivered. It must not wait. A nil handler refuses the flow with code.
	OpenFlow(f *Flow) (h FlowHandler, code EndCode)

	// ServeStream is called in a goroutine of its own and returns when the
	// stream is done with. ctx ends with the session.
	ServeStream(ctx context.Context, in *IncomingStream)
}

// IncomingStream is a stream the peer asks for. Accept or Refuse is called once.
type IncomingStream struct {
	// Addr is the destination as the peer wrote it: ATYP, address, port, at most
	// MaxStreamAddr bytes, not yet checked.
	Addr []byte
}

// MaxStreamAddr bounds the address in a stream's header, in bytes.
const MaxStreamAddr = 1 + 1 + 255 + 2

// Accept tells the peer that the stream is connected, with the bound address as
// SOCKS5 writes it, and returns the stream.
func (in *IncomingStream) Accept(bound []byte) (Stream, error) { return nil, nil }

// Refuse tells the peer why not, as a SOCKS5 reply code (RFC 1928 section 6), and
// frees the stream.
func (in *IncomingStream) Refuse(code byte) {}
