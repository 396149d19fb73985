package e2e

import (
	"fmt"
	"net"
	"testing"
)

func TestPortInUseErrorNamesItsFlag(t *testing.T) {
	t.Parallel()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1))) // free for TCP too
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	overTCP, overUDP := tcp.Addr().String(), udp.LocalAddr().String()
	const link = "wmproxy://a:b@127.0.0.1:1"
	for _, test := range []struct {
		name, what, flag string
		args             []string
	}{
		{"server over TCP", "TCP " + overTCP, "--listen", []string{"server", "--listen", overTCP}},
		{"server over UDP", "UDP " + overUDP, "--listen", []string{"server", "--listen", overUDP}},
		{"client", "TCP " + overTCP, "--listen", []string{"client", "--listen", overTCP, link}},
		{"proxy", "TCP " + overTCP, "--bind", []string{"proxy", "--bind", overTCP}},
		{"debug", "TCP " + overTCP, "--debug", []string{"proxy", "--bind", "127.0.0.1:0", "--debug", overTCP}},
		{"echo over TCP", "TCP " + overTCP, "--listen", []string{"bench", "echo", "--listen", overTCP}},
		{"echo over UDP", "UDP " + overUDP, "--listen", []string{"bench", "echo", "--listen", overUDP}},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := test.args
			if args[0] != "bench" {
				args = withState(t, args)
			}
			p := launch(t, nil, args...)
			want := "wmproxy: cannot listen on " + test.what + ": another program has that port; stop it, or give another port with " + test.flag
			if code := p.WaitExit(); code != 1 || p.CountLogs(containing(want)) != 1 {
				t.Errorf("exit code %d and %q, want 1 and %q", code, p.stderr, want)
			}
		})
	}
}
