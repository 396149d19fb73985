package egress

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"wmproxy/internal/eyeballs"
	"wmproxy/internal/share"
	"wmproxy/socks"
)

func TestSilentFirstAddressCostsOneDelay(t *testing.T) {
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
	u := exitOf(e, "ann")
	e.mu.Lock()
	if u.streams != 1 {
		t.Errorf("%d streams are counted, want 1", u.streams)
	}
	e.mu.Unlock()
	if n := e.cfg.Room.Most(); n != 1 {
		t.Errorf("%d descriptors are counted, want 1", n)
	}
	a.client.CloseWrite()
	receive(t, done)
}

func TestAttemptsCountAgainstTheLimits(t *testing.T) {
	good := target(t, "127.0.0.1")
	deaf(t, "127.0.0.9", good.Port())
	dns := newFakeDNS("two.example", "127.0.0.9", "two.example", "127.0.0.1")
	close(dns.release)
	taken := share.New(1, 1)
	if _, err := taken.Take("bob", share.Stream, 1, new(streamUse)); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]Config{
		"one stream":                        {MaxUserStreams: 1},
		"one descriptor":                    {Room: share.New(1, 1)},
		"none beside the stream's, counted": {Room: taken, Counted: true},
	} {
		before := 0
		if cfg.Room == taken {
			before = 1
		}
		cfg.Resolve, cfg.DialTimeout = dns.lookup, 2*eyeballs.Delay
		e := newExits(t, cfg)
		a := ask()
		done := serve(t, t.Context(), e, toName("two.example", good.Port(), ""), a)
		if code := receive(t, a.refused); code != socks.ReplyTTLExpired {
			t.Errorf("%s: refused with %d, want %d", name, code, socks.ReplyTTLExpired)
		}
		receive(t, done)
		if n, used := exitOf(e, "ann").streams, e.cfg.Room.Most(); n != 0 || used != before {
			t.Errorf("%s: %d streams and %d descriptors are still counted", name, n, used)
		}
	}
}

func TestErrorOfAnsweringHostIsReturned(t *testing.T) {
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
