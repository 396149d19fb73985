package e2e

import (
	"fmt"
	"io"
	"net"
	"testing"
)

// startPlainEcho starts a TCP echo that does not know the loads of bench.
func startPlainEcho(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return ln.Addr().String()
}

func TestBenchRecognizesItsFarEnd(t *testing.T) {
	t.Parallel()
	echo := startPlainEcho(t)
	proxy := startProxy(t)
	nobody := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1))
	notOurs := func(why string) string {
		return fmt.Sprintf("wmproxy: %s is not \"wmproxy bench echo\" of this version: %s; run that there\n", echo, why)
	}
	for _, test := range []struct {
		name, want string
		args       []string
	}{
		{"up", notOurs("it echoes"), []string{"--direct", "--dir", "up", "--target", echo}},
		{"down", notOurs("it echoes"), []string{"--direct", "--dir", "down", "--target", echo}},
		{"through a proxy", notOurs("it echoes"), []string{"--socks", proxy.Addr.String(), "--dir", "both", "--target", echo}},
		{
			"nobody", "wmproxy: nothing listens at " + nobody + "; check --target, and that \"wmproxy bench echo\" runs there\n",
			[]string{"--direct", "--target", nobody},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := launch(t, nil, append([]string{"bench", "tcp", "--dur", "1s"}, test.args...)...)
			if code := p.WaitExit(); code != 1 || p.stderr.String() != test.want || p.stdout.String() != "" {
				t.Errorf("exit code %d, %q and %q, want 1 and %q", code, p.stderr, p.stdout, test.want)
			}
		})
	}
}
