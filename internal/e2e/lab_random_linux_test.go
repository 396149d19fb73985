package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"wmproxy/internal/netlab"
)

// seedVariable repeats the random events of an earlier run.
const seedVariable = "WMPROXY_TEST_SEED"

func seed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv(seedVariable)
	if text == "" {
		return rand.Uint64()
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// After a series of faults in quick succession everything works again.
func TestInTheLabCallSurvivesManyFaults(t *testing.T) {
	t.Parallel()
	const lasts = 40 * time.Second
	number := seed(t)
	random := rand.New(rand.NewPCG(number, 0))
	upTo := func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d))) }
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s=%d has it happen again", seedVariable, number)
		}
	})

	b := startBusy(t, (*lab).startHTTP3Download)
	restarts, address := 0, byte(10)
	some := func(p netlab.Protocol) func() string {
		return func() string {
			directions := [][]netlab.Direction{netlab.Both, {netlab.Up}, {netlab.Down}}[random.IntN(3)]
			which := []netlab.Which{netlab.All, netlab.Share(0.2), netlab.Share(0.6), netlab.Above(1300)}
			i := random.IntN(len(which))
			b.Drop(directions, p, which[i])
			return fmt.Sprintf("%v %v loses %s", p, directions, []string{"all", "a fifth", "more than half", "what is large"}[i])
		}
	}
	events := []func() string{
		func() string { b.Cut(); return "silence" },
		some(netlab.UDP), some(netlab.UDP),
		some(netlab.TCP),
		func() string { b.ForgetNAT(); return "the NAT forgets" },
		func() string { address++; b.Move(address); return "home moves" },
		func() string { b.Unplug(b.Home); return "home's link goes" },
		func() string { signal(t, b.servers[0].process, syscall.SIGSTOP); return "the server is paused" },
		func() string {
			b.servers[0].Kill()
			b.startServer(0)
			restarts++
			return "the server is restarted"
		},
	}
	began := b.call.now()
	var history []string
	for b.call.now()-began < lasts {
		happened := b.call.now() - began
		what := events[random.IntN(len(events))]()
		length := 200*time.Millisecond + upTo(4*time.Second)
		during(length)
		signal(t, b.servers[0].process, syscall.SIGCONT)
		b.Plug(b.Home)
		b.Mend()
		during(upTo(3 * time.Second))
		history = append(history, fmt.Sprintf("%v %s for %v", happened.Round(100*time.Millisecond), what, length.Round(100*time.Millisecond)))
	}
	over := b.call.now()
	for _, h := range history {
		t.Log(h)
	}
	took := b.call.flowing(waitTimeout) - over
	stream := b.connects(waitTimeout)
	b.call.recovers("after it all")
	f := b.call.between(began, over)
	egress := b.call.seenAs()
	t.Logf("%v; the call goes on after %v, a stream after %v; egress %v", f, took.Round(time.Millisecond), stream.Round(time.Millisecond), egress)
	if f.Twice > 0 {
		t.Errorf("%d datagrams came twice", f.Twice)
	}
	if len(egress) > 1+restarts {
		t.Errorf("egress %v after %d restarts", egress, restarts)
	}
	b.finish()
}
