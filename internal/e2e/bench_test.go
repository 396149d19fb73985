package e2e

import (
	"fmt"
	"testing"
)

func TestBenchRecognisesItsFarEnd(t *testing.T) {
	t.Parallel()
	echo := startEcho(t)
	proxy := startProxy(t)
	nobody := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1))
	notOurs := func(why string) string {
		return fmt.Sprintf("wmproxy: what answers at %s is not \"wmproxy bench echo\" of this version: %s; run that there\n", echo, why)
	}
	for _, test := range []struct {
		name, want string
		args       []string
	}{
		{"up", notOurs("it sends back what it gets"), []string{"--direct", "--dir", "up", "--target", echo.String()}},
		{"down", notOurs("it sends back what it gets"), []string{"--direct", "--dir", "down", "--target", echo.String()}},
		{"through a proxy", notOurs("it sends back what it gets"), []string{"--socks", proxy.Addr.String(), "--dir", "both", "--target", echo.String()}},
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
