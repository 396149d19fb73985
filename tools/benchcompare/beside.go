package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"wmproxy/internal/bench"
	"wmproxy/internal/cputime"
)

// besideFigures is for a neighbour whose rate has that unit.
func besideFigures(unit string, round int) []figure {
	return []figure{
		{"RTT p99 alone", "µs", false, 0},
		{"RTT p99 beside", "µs", false, 0},
		{"lost beside", "%", false, 2},
		{"the neighbour's", unit, false, round},
		{"its loss", "%", false, 3},
	}
}

const (
	// besideRounds is how many rounds long the small flow is watched: at 50/s a
	// round has too few datagrams for a p99.
	besideRounds = 3
	// besideBusy is the share of the machine's CPU that a flood may take.
	besideBusy = 0.8
	// besideHeld is the share of a flood that its sender may skip because it was held up:
	// with more the machine has no more to give, however much of it was idle. With
	// sessions of their own processes wait for one processor while another is idle.
	besideHeld = 0.0002
	// besideFits is how often in a row a rate must do so.
	besideFits = 2
	// besideTries is how often rates are tried until that is so. Lower rates cost more
	// for each datagram, so that it takes a few.
	besideTries = 12
	// besideLead is how long before and after the small flow its neighbour runs.
	besideLead = 300 * time.Millisecond
)

// besideFlood measures a small flow alone, then how fast a flood may be, then the
// small flow beside such a flood.
func besideFlood(ctx context.Context, o options, do, neighbour bencher) (values, error) {
	flood := []string{"udp", "--size=200", "--assoc=1"}
	rate, err := floodRate(ctx, o, neighbour, flood)
	if err != nil {
		return nil, err
	}
	v, b, err := beside(ctx, o, do, neighbour, append(flood, fmt.Sprintf("--rate=%d", rate))...)
	if err != nil {
		return nil, err
	}
	var got bench.UDPResult
	err = json.Unmarshal(b, &got)
	return append(v, got.PerSecond, got.LossPercent), err
}

// floodRate is the rate in datagrams/s at which a flood takes besideBusy of the machine
// and is not held up. It begins at that share of what passes when nothing bounds it.
func floodRate(ctx context.Context, o options, do bencher, flood []string) (int, error) {
	run := func(args ...string) (r bench.UDPResult, busy float64, err error) {
		idle, _ := cputime.Idle()
		began := time.Now()
		b, err := do(ctx, append(append(slices.Clone(flood), args...), fmt.Sprintf("--dur=%v", o.duration))...)
		if err != nil {
			return r, 0, err
		}
		err = json.Unmarshal(b, &r)
		after, ok := cputime.Idle()
		if !ok {
			return r, 0, err // not known here
		}
		all := float64(runtime.NumCPU()) * time.Since(began).Seconds()
		return r, 1 - (after-idle).Seconds()/all, err
	}
	most, _, err := run("--window=128")
	if err != nil {
		return 0, err
	}
	return fitting(max(1, int(most.PerSecond*besideBusy)), func(rate int) (trial, error) {
		r, busy, err := run(fmt.Sprintf("--rate=%d", rate))
		return trial{busy, float64(r.Skipped) / float64(max(r.Sent, 1))}, err
	})
}

// trial is what a flood at some rate took of the machine, and the share of it that its sender skipped.
type trial struct{ busy, held float64 }

// fitting lowers a rate until it fits besideFits times in a row.
func fitting(rate int, try func(rate int) (trial, error)) (int, error) {
	fits := 0
	for range besideTries {
		t, err := try(rate)
		if err != nil {
			return 0, err
		}
		if t.busy > besideBusy || t.held > besideHeld {
			fits = 0
			rate = max(1, int(float64(rate)*min(besideBusy/t.busy, 0.9)))
		} else if fits++; fits == besideFits {
			break
		}
	}
	return rate, nil
}

// besideDownload does the same beside one stream at full speed.
func besideDownload(ctx context.Context, o options, do, neighbour bencher) (values, error) {
	v, b, err := beside(ctx, o, do, neighbour, "tcp", "--streams=1", "--dir=down")
	if err != nil {
		return nil, err
	}
	var got bench.TCPResult
	err = json.Unmarshal(b, &got)
	return append(v, got.DownGbit, nan), err
}

// beside measures the small flow alone and beside what neighbour does with load, whose
// result it returns too.
func beside(ctx context.Context, o options, do, neighbour bencher, load ...string) (values, []byte, error) {
	length := besideRounds * o.duration
	small := []string{"udp", "--size=160", "--assoc=1", "--rate=50", fmt.Sprintf("--dur=%v", length)}
	b, err := do(ctx, small...)
	if err != nil {
		return nil, nil, err
	}
	var alone, crowded bench.UDPResult
	if err := json.Unmarshal(b, &alone); err != nil {
		return nil, nil, err
	}
	var running sync.WaitGroup
	var theirs []byte
	var failed error
	running.Go(func() {
		theirs, failed = neighbour(ctx, append(load, fmt.Sprintf("--dur=%v", length+2*besideLead))...)
	})
	lead := time.NewTimer(besideLead)
	defer lead.Stop()
	<-lead.C
	b, err = do(ctx, small...)
	running.Wait()
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, nil, err
	}
	err = json.Unmarshal(b, &crowded)
	return values{alone.RTT.P99, crowded.RTT.P99, crowded.LossPercent}, theirs, err
}
