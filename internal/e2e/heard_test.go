package e2e

import (
	"testing"
	"time"
)

// The application sends once and then only receives, for longer than --udp-idle.
func TestSpeakingRemoteKeepsAssociationOpen(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overBoth, overProxy}, func(t *testing.T, kind string) {
		t.Parallel()
		tu := startOver(t, kind, []string{"--udp-idle", "2s"}, nil)
		conn := associate(t, tu.Entry.Socks())
		target := listenUDP(t, "127.0.0.1:0")
		writeTo(t, conn, []byte("speak"), addrOf(target))
		_, from := receive(t, target)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for began := time.Now(); time.Since(began) < 5*time.Second; <-tick.C {
			writeUDP(t, target, []byte("still here"), from)
			if got, _ := read(t, conn); string(got) != "still here" {
				t.Errorf("got %q", got)
			}
		}
		// Once the target is silent the socket is closed.
		line := tu.Exit().WaitLog("the flow's end", message("flow ended"))
		if why := line.String("why"); why != "idle" {
			t.Errorf("the flow ended because of %q", why)
		}
	})
}
