package ingress

import (
	"context"
	"fmt"
	"testing"

	"wmproxy/internal/entrance"
	"wmproxy/socks"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

func TestResultOfAStreamThatDoesNotOpen(t *testing.T) {
	for _, c := range []struct {
		err  error
		want entrance.Result
	}{
		{&tunnel.RefusedError{Code: socks.ReplyNotAllowed}, entrance.Denied},
		{fmt.Errorf("over QUIC: %w", &tunnel.RefusedError{Code: socks.ReplyHostUnreachable}), entrance.HostUnreachable},
		{&tunnel.RefusedError{Code: 77}, entrance.Failed},
		{context.DeadlineExceeded, entrance.TimedOut},
		{fmt.Errorf("%w: yamux silent for 20.0 s", tunnel.ErrUnanswered), entrance.Unavailable},
		{tunnel.ErrNotAttached, entrance.Unavailable},
		{tunnel.ErrSessionClosed, entrance.Unavailable},
		{&carrier.ResetError{Code: carrier.CodeLimit}, entrance.Limit},
		{&carrier.ResetError{Code: carrier.CodeProtocol}, entrance.Failed},
		{fmt.Errorf("no carrier: %w", carrier.ErrStreamLimit), entrance.Limit},
		{socks.ErrLongName, entrance.Failed},
	} {
		if got := resultOf(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}
