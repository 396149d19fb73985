package quic

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/quic-go/quic-go"

	"wmproxy/tunnel/carrier"
)

// Dial connects to the server at addr and returns once TLS has passed.
// socket is the connection's own and is closed with it, or with the error; nil opens one.
// dead is Timers.Dead, 0 its default: the connection outlives that much silence, if it
// also does at the server. ctx bounds the call alone. Errors of tlsConf's verification are wrapped.
func Dial(ctx context.Context, socket net.PacketConn, addr *net.UDPAddr, tlsConf *tls.Config, dead time.Duration) (carrier.Pending, error) {
	if socket == nil {
		network := "udp6"
		if addr.IP.To4() != nil {
			network = "udp4"
		}
		var err error
		if socket, err = net.ListenUDP(network, nil); err != nil {
			return nil, fmt.Errorf("open a UDP socket: %w", err)
		}
	}
	tr := &quic.Transport{Conn: socket, ConnectionIDLength: connectionIDLength}
	conn, err := tr.Dial(ctx, addr, tlsConf, newConfig(dead, carrier.Windows{}))
	if err != nil {
		tr.Close()
		socket.Close()
		if e, ok := errors.AsType[*quic.TransportError](err); ok && e.Remote && e.ErrorCode == 0x100+carrier.AlertNoProtocol { // RFC 9001 section 4.8
			err = fmt.Errorf("%w: %w", carrier.ErrALPN, err)
		}
		return nil, fmt.Errorf("connect to %v over QUIC: %w", addr, err)
	}
	return &pending{link: newLink(conn, tr, socket, carrier.Windows{}), client: true}, nil
}
