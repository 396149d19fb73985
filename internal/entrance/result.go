package entrance

import (
	"fmt"
	"net/http"
)

// Result is the outcome of a request, in terms of no protocol.
type Result uint8

// The results.
const (
	OK                 Result = iota
	Failed                    // for a reason without a Result of its own
	Denied                    // by the exit's policy
	NetworkUnreachable        // from the exit
	HostUnreachable           // from the exit, or its name is not known there
	Refused                   // by the target
	TimedOut                  // the target did not answer
	UnknownCommand            // the command is not supported
	UnknownAddress            // the type of address is not supported
	Limit                     // there is no room for the request
	Unavailable               // nothing carries the request to the exit now

	results int = iota
)

// codes is the table of docs/PROTOCOL.md. The reply codes of SOCKS5 (RFC 1928 section 6) are those that an
// exit answers with on the wire.
var codes = [results]struct {
	text   string
	socks5 byte
	socks4 byte
	http   int
}{
	OK:                 {"connected", 0, 90, http.StatusOK},
	Failed:             {"the connection failed", 1, 91, http.StatusBadGateway},
	Denied:             {"the destination policy refuses it", 2, 91, http.StatusForbidden},
	NetworkUnreachable: {"the target's network cannot be reached", 3, 91, http.StatusBadGateway},
	HostUnreachable:    {"the target's name is not known, or it cannot be reached", 4, 91, http.StatusBadGateway},
	Refused:            {"the target refused the connection", 5, 91, http.StatusBadGateway},
	TimedOut:           {"the target did not answer in time", 6, 91, http.StatusGatewayTimeout},
	UnknownCommand:     {"the command is not supported", 7, 91, http.StatusNotImplemented},
	UnknownAddress:     {"the type of address is not supported", 8, 91, http.StatusBadRequest},
	Limit:              {"no more connections may be open", 1, 91, http.StatusServiceUnavailable},
	Unavailable:        {"the tunnel is not connected at present", 1, 91, http.StatusServiceUnavailable},
}

// FromSOCKS5 returns the result that a reply code tells; it is Failed for codes that nobody has defined.
func FromSOCKS5(code byte) Result {
	for r := range codes {
		if codes[r].socks5 == code {
			return Result(r)
		}
	}
	return Failed
}

// SOCKS5 returns the reply code for r.
func (r Result) SOCKS5() byte { return codes[r].socks5 }

// SOCKS4 returns the code of a SOCKS4 reply for r.
func (r Result) SOCKS4() byte { return codes[r].socks4 }

// HTTP returns the status of an HTTP response for r.
func (r Result) HTTP() int { return codes[r].http }

// String returns a clause for people.
func (r Result) String() string {
	if int(r) < results {
		return codes[r].text
	}
	return fmt.Sprintf("result %d", uint8(r))
}
