package egress

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"wmproxy/internal/eyeballs"
	"wmproxy/socks"
)

func TestDeafFirstAddressCostsOneDelay(t *testing.T) {
	good := target(t, "127.0.0.1")
	deaf(t, "127.0.0.9", good.Port())
	dns := newFakeDNS("two.example", "127.0.0.9", "two.example", "127.0.0.1")
	close(dns.release)
	e := newExits(t, Config{Resolve: dns.lookup})
	a := ask()
	began := time.Now()
	done := serve(t, t.Context(), e, toName("two.example", good.Port(), ""), a)
	receive(t, a.bound)
	if took := time.Since(began); took < eyeballs.Delay || took > 16*eyeballs.Delay {
		t.Errorf("connected after %v, want a little more than %v", took, eyeballs.Delay)
	}
	e.mu.Lock()
	if e.streams != 1 {
		t.Errorf("%d streams are counted, want 1", e.streams)
	}
	e.mu.Unlock()
	a.client.CloseWrite()
	receive(t, done)
}

func TestAttemptsCountAgainstTheLimits(t *testing.T) {
	good := target(t, "127.0.0.1")
	deaf(t, "127.0.0.9", good.Port())
	dns := newFakeDNS("two.example", "127.0.0.9", "two.example", "127.0.0.1")
	close(dns.release)
	e := newExits(t, Config{Resolve: dns.lookup, MaxUserStreams: 1, DialTimeout: 2 * eyeballs.Delay})
	a := ask()
	done := serve(t, t.Context(), e, toName("two.example", good.Port(), ""), a)
	if code := receive(t, a.refused); code != socks.ReplyTTLExpired {
		t.Errorf("refused with %d, want %d", code, socks.ReplyTTLExpired)
	}
	receive(t, done)
	if e.streams != 0 || e.For("ann").streams != 0 {
		t.Errorf("%d streams are still counted", e.streams)
	}
}

func TestHostThatAnswersIsTold(t *testing.T) {
	refused := fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	unreachable := fmt.Errorf("dial: %w", syscall.ENETUNREACH)
	for name, test := range map[string]struct {
		errs []error
		want error
	}{
		"one refuses":  {[]error{context.DeadlineExceeded, unreachable, refused}, refused},
		"none answers": {[]error{context.DeadlineExceeded, unreachable}, context.DeadlineExceeded},
		"one alone":    {[]error{unreachable}, unreachable},
	} {
		if got := mostTelling(test.errs); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
