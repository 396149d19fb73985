package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"wmproxy/internal/probe"
	"wmproxy/internal/status"
	"wmproxy/socks"
)

// smallCgroup makes a memory cgroup with this limit and returns its directory, or skips the
// test.
func smallCgroup(t *testing.T, limit int64) string {
	t.Helper()
	root, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes" // version 1
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil && strings.Contains(string(b), "memory") {
		root, file = "/sys/fs/cgroup", "memory.max"
		_ = os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0)
	}
	dir := filepath.Join(root, fmt.Sprintf("wmproxy-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		unable(t, "no memory cgroup can be made: "+err.Error())
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.FormatInt(limit, 10)), 0); err != nil {
		unable(t, "the cgroup takes no limit: "+err.Error())
	}
	return dir
}

// callOf sends 50 datagrams a second for d and returns the share of lost ones and the 99th
// percentile of the round-trip times.
func callOf(t *testing.T, conn *socks.PacketConn, echo socks.Addr, d time.Duration) (lost float64, p99 time.Duration) {
	t.Helper()
	pinger := probe.NewPinger(conn, echo)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var rtts []time.Duration
	n := int(d / (20 * time.Millisecond))
	for range n {
		<-tick.C
		if rtt, err := pinger.Ping(160, time.Second); err == nil {
			rtts = append(rtts, rtt)
		}
	}
	slices.Sort(rtts)
	if len(rtts) == 0 {
		return 1, 0
	}
	return 1 - float64(len(rtts))/float64(n), rtts[(len(rtts)-1)*99/100]
}

// Two users who fill the server's memory limit, with its defaults and 256 MB for the
// process, cost the others little.
func TestInTheLabTwoAttackersInASmallCgroup(t *testing.T) {
	const (
		limit = 256 << 20
		calls = 5 * time.Second

		// late is a p99 that is accepted in any case: attackers, clients and targets share the
		// server's processors.
		late = 40 * time.Millisecond

		// perAttacker bounds the bytes per second of each attacker, so that they do not use up
		// the processors that they share with the server.
		perAttacker = 25 << 20
	)
	group := smallCgroup(t, limit)
	listen := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1))
	dir := filepath.Join(t.TempDir(), "server")
	args := slices.Concat([]string{
		"server", "--listen", listen, "--state-dir", dir,
		"--token", "honest:first-secret-0123456789", "--token", "eve:other-secret-0123456789", "--token", "mallory:third-secret-0123456789",
	}, loopbackAllowed)
	enter := fmt.Sprintf("echo $$ >%s/cgroup.procs && exec \"$@\"", group)
	srv := serverBehind(t, launchCommand(t, nil, exec.Command("sh", slices.Concat([]string{"-c", enter, "sh", program}, args)...), args))
	srv.StateDir = dir

	honest := startClient(t, linkOf(t, srv, "honest", "first-secret-0123456789"))
	echo := startEcho(t)
	conn := associate(t, honest.Socks())
	ping(t, conn, echo)
	lostAlone, p99Alone := callOf(t, conn, echo, calls)

	target := startStalling(t, 256<<10)
	for user, secret := range map[string]string{"eve": "other-secret-0123456789", "mallory": "third-secret-0123456789"} {
		for _, kind := range wireKinds {
			c := startClient(t, linkOf(t, srv, user, secret), "--transport", kind)
			stall(t, c, target, 31, rate.NewLimiter(perAttacker/2, 1<<20))
		}
	}
	lost, p99 := callOf(t, conn, echo, 2*calls)
	r, _, err := status.Ask(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("alone: %.1f %% lost, p99 %v; beside two attackers: %.1f %% lost, p99 %v; %d KiB resident, %d of %d MiB of the budget, %d resets",
		100*lostAlone, p99Alone, 100*lost, p99, residentKiB(t, srv.process), r.Memory.Used>>20, r.Memory.Limit>>20, r.Memory.Resets)
	if r.Memory.Limit != limit/4 {
		t.Errorf("the budget is %d bytes, want a quarter of the cgroup's", r.Memory.Limit)
	}
	if r.Memory.Resets == 0 {
		t.Error("the attackers did not fill the memory")
	}
	if lost > max(2*lostAlone, 0.004) {
		t.Errorf("%.1f %% of the call got lost", 100*lost)
	}
	if p99 > max(2*p99Alone, late) {
		t.Errorf("p99 %v, want at most twice %v or %v", p99, p99Alone, late)
	}
}
