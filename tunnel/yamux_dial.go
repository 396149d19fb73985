package tunnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"wmproxy/internal/udpio"
)

// DialYamux connects to the server at addr over TCP and returns once TLS has
// passed. dead is Timers.Dead, 0 its default: the connection outlives that much
// silence. ctx bounds the call alone. Errors of tlsConf's verification are wrapped.
func DialYamux(ctx context.Context, addr *net.TCPAddr, tlsConf *tls.Config, dead time.Duration) (Pending, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("connect over TCP: %w", err)
	}
	tuneTCP(raw, dead)
	records := &recordConn{Conn: udpio.Quiet(raw)}
	conn := tls.Client(records, fullRecords(tlsConf))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS handshake with %v: %w", addr, err)
	}
	return &yamuxPending{raw: raw, records: records, tls: conn, client: true, dead: dead}, nil
}

// fullRecords returns conf without TLS's habit of beginning with small records,
// also where conf chooses another for each client.
func fullRecords(conf *tls.Config) *tls.Config {
	conf = conf.Clone()
	conf.DynamicRecordSizingDisabled = true
	if choose := conf.GetConfigForClient; choose != nil {
		conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if chosen == nil || chosen.DynamicRecordSizingDisabled {
				return chosen, err
			}
			chosen = chosen.Clone()
			chosen.DynamicRecordSizingDisabled = true
			return chosen, err
		}
	}
	return conf
}
