package tune

import (
	"context"
	"math"
	"os"
	"runtime"
	"time"
)

const (
	// governInterval is the time between two looks of the governor.
	governInterval = 250 * time.Millisecond

	// fullShare is the share of its processors that the process must use to get another.
	fullShare = 0.85

	// idleProcessors is how many processors of the machine must be idle for that. Two
	// processes on two processors, each full, only get in each other's way on more:
	// a stream then costs them a third more CPU and is slower.
	idleProcessors = 0.5

	// calmShare is the share of one processor less below which one is given back.
	calmShare = 0.5

	fullLooks = 2  // in a row until another processor is taken: half a second
	calmLooks = 20 // in a row until one is given back: five seconds
)

// governor decides on how many processors the Go scheduler should run.
//
// A relay spends most of its time handing datagrams from goroutine to
// goroutine. On one processor a hand-off is a switch between goroutines; on two
// it is the wake-up of a thread, which costs ten times as much. So the process
// stays on one processor until that one is full.
type governor struct {
	now, most  int
	full, calm int // looks in a row
}

// isFull reports whether used, the processor seconds used per second, is about what there is.
func (g *governor) isFull(used float64) bool { return used > fullShare*float64(g.now) }

// next takes the processor seconds that the process used per second, and those that the
// whole machine did not, and returns how many processors there should be.
func (g *governor) next(used, idle float64) int {
	switch {
	case g.isFull(used) && idle >= idleProcessors:
		g.full, g.calm = g.full+1, 0
	case used < calmShare*float64(g.now-1):
		g.full, g.calm = 0, g.calm+1
	default:
		g.full, g.calm = 0, 0
	}
	switch {
	case g.full >= fullLooks && g.now < g.most:
		g.now, g.full = g.now+1, 0
	case g.calm >= calmLooks:
		g.now, g.calm = g.now-1, 0
	}
	return g.now
}

// GovernProcessors runs the process on as few processors as its load needs until ctx
// ends. It does nothing if GOMAXPROCS is set, if CPU time cannot be read, or with Processors off.
func GovernProcessors(ctx context.Context) {
	most := runtime.GOMAXPROCS(0)
	last, ok := usedTime()
	if !Processors.On() || !ok || most == 1 || os.Getenv("GOMAXPROCS") != "" {
		return
	}
	g := governor{now: 1, most: most}
	runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(most)
	tick := time.NewTicker(governInterval)
	defer tick.Stop()
	at := time.Now()
	var idle idleShare
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		used, _ := usedTime()
		before := g.now
		share := (used - last).Seconds() / now.Sub(at).Seconds()
		if n := g.next(share, idle.since(now, g.isFull(share))); n != before {
			runtime.GOMAXPROCS(n)
		}
		last, at = used, now
	}
}

// idleShare measures how idle the machine was between two consecutive looks that asked.
type idleShare struct {
	last time.Duration
	at   time.Time // zero if the last look did not ask
}

// since returns how many processors were idle since the last look, on average; infinitely many
// if that is not known.
func (i *idleShare) since(now time.Time, asked bool) float64 {
	before := *i
	*i = idleShare{}
	if !asked {
		return math.Inf(1)
	}
	t, ok := IdleTime()
	if !ok {
		return math.Inf(1)
	}
	*i = idleShare{t, now}
	if before.at.IsZero() {
		return math.Inf(1)
	}
	return (t - before.last).Seconds() / now.Sub(before.at).Seconds()
}
