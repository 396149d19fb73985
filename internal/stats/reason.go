package stats

// Reason is why a datagram went no further.
type Reason uint8

// The reasons. Up is towards the target, down towards the application.
const (
	// At an entrance.
	Source   Reason = iota // up: from a source that may not send for the association; at an exit, down: the policy refuses the source
	Fragment               // up: a fragment that could not become a datagram: others missing, late, too large
	NoPort                 // down: the application has sent nothing yet, so its port is unknown
	System                 // down: the system did not take it: full buffer, no route

	// In the tunnel.
	QueueFull  // pushed out of the queue by newer ones
	Stale      // waited too long
	PathShrank // in a bundle that the path no longer carries
	Reassembly // fragments that never became whole
	Refused    // of a flow that the exit or the session's limit refused
	Unknown    // of a flow that we opened once and no longer have

	// At an exit.
	PortZero   // up: to port 0
	Policy     // up: the policy refuses the destination
	Unresolved // up: the name has no address, or none in time
	Waiting    // up: too much waits for names
	Names      // up: too many names at once
	Send       // up: the system did not take it: no route, too large, buffer full
	Filtered   // down: from somewhere the flow has not sent to
	NoRoom     // up: others have the flow's socket, and there is no other

	// In several places.
	Malformed // does not parse; in the tunnel it counts bundles
	TooLarge  // larger than a datagram may be, with its header
	Ended     // of a flow that has ended

	numReasons
)

var names = [numReasons]string{
	"source", "fragment", "no_port", "system",
	"queue_full", "stale", "path_shrank", "reassembly", "refused", "unknown",
	"port_zero", "policy", "unresolved", "waiting", "names", "send", "filtered", "no_room",
	"malformed", "too_large", "ended",
}

func (r Reason) String() string { return names[r] }
