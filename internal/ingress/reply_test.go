package ingress

import (
	"context"
	"fmt"
	"testing"

	"wmproxy/socks"
	"wmproxy/tunnel"
)

func TestTheReplySaysWhatKeptAStreamFromOpening(t *testing.T) {
	for _, c := range []struct {
		err  error
		want byte
	}{
		{&tunnel.RefusedError{Code: socks.ReplyNotAllowed}, socks.ReplyNotAllowed},
		{fmt.Errorf("over QUIC: %w", &tunnel.RefusedError{Code: socks.ReplyHostUnreachable}), socks.ReplyHostUnreachable},
		{context.DeadlineExceeded, socks.ReplyTTLExpired},
		{fmt.Errorf("%w: yamux silent for 20.0 s", tunnel.ErrUnanswered), socks.ReplyGeneralFailure},
		{tunnel.ErrNotAttached, socks.ReplyGeneralFailure},
		{tunnel.ErrSessionClosed, socks.ReplyGeneralFailure},
		{&tunnel.ResetError{Code: tunnel.CodeLimit}, socks.ReplyGeneralFailure},
	} {
		if got := reply(c.err); got != c.want {
			t.Errorf("%v: reply %d, want %d", c.err, got, c.want)
		}
	}
}
