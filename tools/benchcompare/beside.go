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
	"wmproxy/internal/tune"
)

// besideFigures returns the figures for a neighbour with this unit of its rate.
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
	// besideRounds is the number of rounds for which the small flow runs: at 50/s one
	// round has too few datagrams for a p99.
	besideRounds = 3
	// besideBusy is the share of the machine's CPU that a flood may use.
	besideBusy = 0.8
	// besideSkipped is the share of a flood that its sender may skip because it was
	// delayed. A larger share means that the machine is at its limit, even if it seems
	// idle: in sessions of their own, processes wait for one processor while another idles.
	besideSkipped = 0.0002
	// besideFits is the number of times in a row that a rate must fit.
	besideFits = 2
	// besideTries bounds the rates that are tried. Lower rates cost more for each
	// datagram, so that it takes a few.
	besideTries = 12
	// besideLead is the time for which the neighbour runs before and after the small flow.
	besideLead = 300 * time.Millisecond
)

// besideFlood measures a small flow alone and beside a flood, at a rate that it determines
// first.
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

// floodRate returns the rate in datagrams/s at which a flood uses besideBusy of the machine
// and is not delayed. It begins with that share of the rate without a bound.
func floodRate(ctx context.Context, o options, do bencher, flood []string) (int, error) {
	run := func(args ...string) (r bench.UDPResult, busy float64, err error) {
		idle, _ := tune.IdleTime()
		began := time.Now()
		b, err := do(ctx, append(append(slices.Clone(flood), args...), fmt.Sprintf("--dur=%v", o.duration))...)
		if err != nil {
			return r, 0, err
		}
		err = json.Unmarshal(b, &r)
		after, ok := tune.IdleTime()
		if !ok {
			return r, 0, err // not known on this system
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

// trial is the share of the machine that a flood used, and the share of the flood that its
// sender skipped.
type trial struct{ busy, skipped float64 }

// fitting lowers a rate until it fits besideFits times in a row.
func fitting(rate int, try func(rate int) (trial, error)) (int, error) {
	fits := 0
	for range besideTries {
		t, err := try(rate)
		if err != nil {
			return 0, err
		}
		if t.busy > besideBusy || t.skipped > besideSkipped {
			fits = 0
			rate = max(1, int(float64(rate)*min(besideBusy/t.busy, 0.9)))
		} else if fits++; fits == besideFits {
			break
		}
	}
	return rate, nil
}

// besideDownload measures a small flow alone and beside a stream at full speed.
func besideDownload(ctx context.Context, o options, do, neighbour bencher) (values, error) {
	v, b, err := beside(ctx, o, do, neighbour, "tcp", "--streams=1", "--dir=down")
	if err != nil {
		return nil, err
	}
	var got bench.TCPResult
	err = json.Unmarshal(b, &got)
	return append(v, got.DownGbit, nan), err
}

// beside measures the small flow alone and beside the neighbour's load. It also returns the
// result of that load.
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
