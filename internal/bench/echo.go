package bench

import (
	"net/netip"

	"wmproxy/internal/udpio"
)

// Echo is the far end of the loads.
type Echo struct {
	udp *udpio.Socket
}

// ListenEcho starts an echo on addr, for UDP and TCP; port 0 lets the system
// choose one.
func ListenEcho(addr netip.AddrPort, offload bool) (*Echo, error) {
	udp, err := udpio.Listen(addr, udpio.Config{NoOffload: !offload, ReadBuffer: echoBuffer, WriteBuffer: echoBuffer})
	if err != nil {
		return nil, err
	}
	e := &Echo{udp: udp}
	// Messages that were read are ready to be written: Addr is the source. What
	// the system does not take is lost, as anywhere.
	udp.Start(func(ms []udpio.Message) { _, _ = udp.Write(ms) })
	return e, nil
}

// echoBuffer is the size of the socket's buffers in bytes.
const echoBuffer = 16 << 20

// Addr is where the echo listens.
func (e *Echo) Addr() netip.AddrPort { return e.udp.LocalAddr() }

// Close ends the echo. It must be called once.
func (e *Echo) Close() error { return e.udp.Close() }
