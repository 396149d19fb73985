package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"wmproxy/internal/probe"
	"wmproxy/internal/testmain"
)

// residentKiB returns the resident memory of a process, as the system counts it.
func residentKiB(t *testing.T, p *process) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		unable(t, "this system has no /proc to read memory from")
	}
	for line := range strings.Lines(string(b)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib
		}
	}
	t.Fatalf("%s has no resident memory", p.name)
	return 0
}

// The memory of many associations is returned to the system, and not only to the program.
func TestMemoryIsReturnedAfterAssociationsEnd(t *testing.T) {
	if testmain.Race {
		t.Skip("the race detector keeps memory of its own")
	}
	t.Parallel()
	const (
		open  = 5000
		bound = 30 * time.Second
		most  = 120 // percent of the memory before
	)
	s := startServer(t)
	c := startClient(t, s.Link)
	echo := startEcho(t)
	ping(t, associate(t, c.Socks()), echo)
	resident := func() int { return residentKiB(t, s.process) + residentKiB(t, c.process) }
	before := resident()
	var wg sync.WaitGroup
	turns := make(chan struct{}, 64)
	var ends []func() error
	for range open {
		conn := associate(t, c.Socks())
		ends = append(ends, conn.Close)
		turns <- struct{}{}
		wg.Go(func() {
			if _, err := probe.NewPinger(conn, echo).Ping(64, waitTimeout); err != nil {
				t.Error(err)
			}
			<-turns
		})
	}
	wg.Wait()
	held := resident()
	for _, end := range ends {
		end()
	}
	ended := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	after := resident()
	tuned := os.Getenv(tuneVariable) == ""
	for tuned && after > before*most/100 && time.Since(ended) < bound {
		<-tick.C
		after = resident()
	}
	t.Logf("%d KiB before, %d with %d associations, %d (%d %%) %v after their end",
		before, held, open, after, 100*after/before, time.Since(ended).Round(time.Second))
	if held < before*most/100 {
		t.Errorf("%d associations held too little to tell", open)
	}
	if tuned && after > before*most/100 {
		t.Errorf("%d %% of the memory is still held %v after the end, want at most %d", 100*after/before, bound, most)
	}
}
