package tunnel

import "fmt"

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
