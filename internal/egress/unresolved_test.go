package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
)

func TestUnresolvedReasonOmitsTheName(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("resolve: %w", &net.DNSError{Err: "no such host", Name: "x.test", Server: "192.0.2.1:53", IsNotFound: true}), "no such host"},
		{fmt.Errorf("resolve: %w", &net.DNSError{Err: "i/o timeout", Name: "x.test", IsTimeout: true}), "the DNS server does not answer"},
		{fmt.Errorf("resolve: %w", context.DeadlineExceeded), "the DNS server does not answer"},
		{errNoAddr, "the name has no address"},
		{errors.New("strange"), "strange"},
	} {
		if got := unresolvedReason(test.err); got != test.want {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
	}
}
