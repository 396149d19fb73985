package main

import (
	"context"
	"math"
	"os"
	"runtime"
	"time"

	"wmproxy/internal/cputime"
)

const (
	// procsInterval is how often the governor looks.
	procsInterval = 250 * time.Millisecond

	// procsBusy is the share of the processors in use above which one more is taken.
	procsBusy = 0.85

	// procsIdle is how many processors of the machine must be idle for that. Two
	// processes on two processors, each full, only get in each other's way on more:
	// a stream then costs them a third more CPU and is slower.
	procsIdle = 0.5

	// procsCalm is the share of one processor less below which one is given back.
	procsCalm = 0.5

	// How many looks in a row that takes: half a second up, five seconds down.
	procsBusyLooks = 2
	procsCalmLooks = 20
)

// procs decides on how many processors the Go scheduler should run.
//
// A relay spends most of its time on handing datagrams from goroutine to
// goroutine. On one processor a hand-off is a switch between goroutines; on two
// it is the wake-up of a thread, which costs ten times as much. So the process
// stays on one processor until that one is really full.
type procs struct {
	now, most  int
	busy, calm int
}

// full says whether the processor seconds used per second are what there is.
func (p *procs) full(used float64) bool { return used > procsBusy*float64(p.now) }

// next takes the processor seconds that the process used per second, and those that the
// whole machine did not, and returns how many processors there should be.
func (p *procs) next(used, idle float64) int {
	switch {
	case p.full(used) && idle >= procsIdle:
		p.busy, p.calm = p.busy+1, 0
	case used < procsCalm*float64(p.now-1):
		p.busy, p.calm = 0, p.calm+1
	default:
		p.busy, p.calm = 0, 0
	}
	switch {
	case p.busy >= procsBusyLooks && p.now < p.most:
		p.now, p.busy = p.now+1, 0
	case p.calm >= procsCalmLooks:
		p.now, p.calm = p.now-1, 0
	}
	return p.now
}

// governProcs runs the process on as few processors as its load needs until ctx
// ends. It does nothing where GOMAXPROCS is set or CPU time cannot be read.
func governProcs(ctx context.Context) {
	most := runtime.GOMAXPROCS(0)
	last, ok := cputime.Used()
	if !ok || most == 1 || os.Getenv("GOMAXPROCS") != "" {
		return
	}
	p := procs{now: 1, most: most}
	runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(most)
	tick := time.NewTicker(procsInterval)
	defer tick.Stop()
	at := time.Now()
	var idle idleness
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		used, _ := cputime.Used()
		before := p.now
		share := (used - last).Seconds() / now.Sub(at).Seconds()
		if n := p.next(share, idle.since(now, p.full(share))); n != before {
			runtime.GOMAXPROCS(n)
		}
		last, at = used, now
	}
}

// idleness is how idle the machine has been between two looks in a row at which
// somebody asked.
type idleness struct {
	last time.Duration
	at   time.Time // zero where nobody asked
}

// since is how many processors were idle since the last look, on average; infinitely many
// where that is not known.
func (i *idleness) since(now time.Time, asked bool) float64 {
	before := *i
	*i = idleness{}
	if !asked {
		return math.Inf(1)
	}
	t, ok := cputime.Idle()
	if !ok {
		return math.Inf(1)
	}
	*i = idleness{t, now}
	if before.at.IsZero() {
		return math.Inf(1)
	}
	return (t - before.last).Seconds() / now.Sub(before.at).Seconds()
}
