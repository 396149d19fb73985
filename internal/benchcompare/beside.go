package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"wmproxy/internal/bench"
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
	// besideShare is how much of what the system can do the flood asks for.
	besideShare = 0.8
	// besideLead is how long before and after the small flow its neighbour runs.
	besideLead = 300 * time.Millisecond
)

// besideFlood measures a small flow alone, then what a flood can do, then the
// small flow beside a flood at a share of that.
func besideFlood(ctx context.Context, o options, do bencher) (values, error) {
	flood := []string{"udp", "--size=200", "--assoc=1"}
	b, err := do(ctx, append(flood, "--window=128", fmt.Sprintf("--dur=%v", o.duration))...)
	if err != nil {
		return nil, err
	}
	var most, got bench.UDPResult
	if err := json.Unmarshal(b, &most); err != nil {
		return nil, err
	}
	rate := max(1, int(most.PerSecond*besideShare))
	v, b, err := beside(ctx, o, do, append(flood, fmt.Sprintf("--rate=%d", rate))...)
	if err != nil {
		return nil, err
	}
	err = json.Unmarshal(b, &got)
	return append(v, got.PerSecond, got.LossPercent), err
}

// besideDownload does the same beside one stream at full speed.
func besideDownload(ctx context.Context, o options, do bencher) (values, error) {
	v, b, err := beside(ctx, o, do, "tcp", "--streams=1", "--dir=down")
	if err != nil {
		return nil, err
	}
	var got bench.TCPResult
	err = json.Unmarshal(b, &got)
	return append(v, got.DownGbit, nan), err
}

// beside measures the small flow alone and beside a neighbour, whose result it
// returns too.
func beside(ctx context.Context, o options, do bencher, neighbour ...string) (values, []byte, error) {
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
		theirs, failed = do(ctx, append(neighbour, fmt.Sprintf("--dur=%v", length+2*besideLead))...)
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
