package egress

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
)

// noting returns a function that logs a line if the look-up of name failed, which applications
// cannot tell from a dead network, and calls then. The log bounds the lines.
func (u *UserExit) noting(name string, then func([]netip.Addr, error)) func([]netip.Addr, error) {
	return func(addrs []netip.Addr, err error) {
		if err != nil && !errors.Is(err, context.Canceled) { // the exits are closing
			u.exits.cfg.Log.Info("a name does not resolve", slog.String("user", u.Name),
				slog.String("name", name), slog.String("reason", unresolvedReason(err)))
		}
		then(addrs, err)
	}
}

// unresolvedReason returns err's text without the parts that the log line already has.
func unresolvedReason(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsTimeout, errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "the DNS server does not answer"
	case errors.As(err, &dns):
		return dns.Err
	}
	return err.Error()
}
