//go:build linux

package main

import (
	"context"
	"encoding/json"
	"math"
	"sync"
	"time"

	"wmproxy/internal/bench"
)

var nan = number(math.NaN())

// number is a figure; NaN, which JSON has no word for, if it was not measured.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(n)) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

func (n *number) UnmarshalJSON(b []byte) error {
	*n = nan
	if string(b) == "null" {
		return nil
	}
	return json.Unmarshal(b, (*float64)(n))
}

// positive returns v, NaN if it is 0 because nothing was measured.
func positive(v float64) number {
	if v <= 0 {
		return nan
	}
	return number(v)
}

// values are the results of one round of a load, in the order of its figures.
type values []number

// figure is a column of a load's table.
type figure struct {
	title, unit string
	digits      int // after the point
}

// load is one that all systems get.
type load struct {
	name, title string
	streams     bool // it has CONNECT streams
	datagrams   bool // it needs associations
	cold        bool // on a client that is started for it
	figures     []figure
	run         func(context.Context, *trial) (values, error)
}

var (
	callFigures = []figure{{"lost", "%", 2}, {"p50", "ms", 1}, {"p99", "ms", 1}}
	wireFigure  = figure{"bytes on the wire for one", "", 2}
)

var loads = []load{
	stream("down1", "CONNECT, 1 stream down", kindDown, 1),
	stream("up1", "CONNECT, 1 stream up", kindUp, 1),
	stream("down4", "CONNECT, 4 streams down", kindDown, 4),
	stream("up4", "CONNECT, 4 streams up", kindUp, 4),
	first("first", "first byte on a tunnel that is up", false),
	first("cold", "first byte from the start of the client", true),
	alone("call", "a call alone: 50/s × 160 B", voice),
	alone("game", "a game alone: 128/s × 90 B", game),
	beside("call-down", "a call beside a download", kindDown),
	beside("call-up", "a call beside an upload", kindUp),
	{
		name: "half", title: "UDP at half of the path's rate: 1,200 B", datagrams: true, run: runHalf,
		figures: []figure{{"delivered in time", "%", 2}, {"of the possible", "%", 1}, {"p50", "ms", 1}, {"p99", "ms", 1}, {"CPU-s per million", "", 1}, wireFigure},
	},
	{
		name: "over", title: "UDP at 120 % of the path's rate, a call beside it", datagrams: true, run: runOver,
		figures: []figure{{"delivered in time", "%", 1}, {"of the possible", "%", 1}, {"call lost", "%", 2}, {"call p50", "ms", 1}, {"call p99", "ms", 1}},
	},
	{
		name: "http3", title: "HTTP/3 download through an association", datagrams: true, run: runHTTP3,
		figures: []figure{{"goodput", "Mbit/s", 1}},
	},
}

func loadNames() (names []string) {
	for _, l := range loads {
		names = append(names, l.name)
	}
	return names
}

const (
	streamWarmup   = 3 * time.Second
	datagramWarmup = 2 * time.Second
	callWarmup     = 5 * time.Second // alone; beside others the streams' is counted
	// callLength is how much longer than other loads a call alone lasts, since it has few datagrams.
	callLength = 3
	mark       = 10_000_000 // bytes whose time is taken
	callLimit  = 3 * time.Second
	// bulkLimit is how much later than an idle path would bring it a datagram still is in time.
	bulkLimit = 250 * time.Millisecond
	bulkSize  = 1200
	headers   = 28 // IPv4, UDP
)

// rhythm is a flow of datagrams.
type rhythm struct{ rate, size int }

var (
	voice = rhythm{50, 160}
	game  = rhythm{128, 90}
)

func stream(name, title, kind string, streams int) load {
	return load{
		name: name, title: title, streams: true,
		figures: []figure{{"goodput", "Mbit/s", 1}, {"10 MB after", "s", 2}, {"CPU-s per GB", "", 2}, wireFigure},
		run: func(ctx context.Context, t *trial) (values, error) {
			var r bench.TCPResult
			wire, err := t.do(ctx, t.stream(kind, streams), &r)
			return values{megabits(r), positive(r.Marked), positive(r.CPUPerGB), over(wire, r.UpBytes+r.DownBytes)}, err
		},
	}
}

// stream is the task of CONNECT streams.
func (t *trial) stream(kind string, streams int) task {
	return task{Kind: kind, Target: echoAddr, Streams: streams, Warmup: streamWarmup, Duration: t.duration, Mark: mark}
}

func megabits(r bench.TCPResult) number { return number((r.UpGbit + r.DownGbit) * 1000) }

// over is a ratio, NaN if there is nothing to divide by.
func over[T int | int64](part int, whole T) number {
	if whole == 0 {
		return nan
	}
	return number(float64(part) / float64(whole))
}

func first(name, title string, cold bool) load {
	return load{
		name: name, title: title, streams: true, datagrams: true, cold: cold,
		figures: []figure{{"CONNECT", "round trips", 2}, {"association", "round trips", 2}, {"CONNECT", "ms", 0}, {"association", "ms", 0}},
		run: func(ctx context.Context, t *trial) (values, error) {
			kind := kindFirst
			if cold {
				kind = kindCold
			}
			var r firstResult
			_, err := t.do(ctx, task{Kind: kind, Target: echoAddr, Stream: true, Datagram: true, Since: t.began}, &r)
			rtt := milliseconds(t.path.rtt)
			return values{positive(r.Connect / rtt), positive(r.Associate / rtt), positive(r.Connect), positive(r.Associate)}, err
		},
	}
}

// call is the task of a small flow.
func (t *trial) call(r rhythm, warmup, duration time.Duration) task {
	return task{Kind: kindUDP, Target: callAddr, Rate: r.rate, Size: r.size, Warmup: warmup, Duration: duration, Timeout: callLimit}
}

func callValues(r bench.UDPResult) values {
	return values{number(r.LossPercent), positive(r.RTT.P50 / 1000), positive(r.RTT.P99 / 1000)}
}

func alone(name, title string, of rhythm) load {
	return load{
		name: name, title: title, datagrams: true, figures: append(append([]figure(nil), callFigures...), wireFigure),
		run: func(ctx context.Context, t *trial) (values, error) {
			var r bench.UDPResult
			wire, err := t.do(ctx, t.call(of, callWarmup, callLength*t.duration), &r)
			return append(callValues(r), over(wire, 2*r.InTime*int64(of.size))), err
		},
	}
}

func beside(name, title, kind string) load {
	return load{
		name: name, title: title, streams: true, datagrams: true, figures: append(append([]figure(nil), callFigures...), figure{"the stream", "Mbit/s", 1}),
		run: func(ctx context.Context, t *trial) (values, error) {
			var r bench.UDPResult
			var neighbour bench.TCPResult
			err := t.both(ctx, t.call(voice, streamWarmup, t.duration), &r, t.stream(kind, 1), &neighbour)
			return append(callValues(r), megabits(neighbour)), err
		},
	}
}

// bulk is the task of datagrams at a multiple of the path's rate for UDP.
func (t *trial) bulk(multiple float64) task {
	return task{
		Kind: kindUDP, Target: echoAddr, Rate: int(multiple * float64(t.path.udpRate()) / 8 / (bulkSize + headers)), Size: bulkSize,
		Warmup: datagramWarmup, Duration: t.duration, Timeout: t.path.rtt + bulkLimit,
	}
}

// deliveredValues is what came back, and how much of what could have at the rate at which it
// was sent: on a busy machine that is less than was asked.
func (t *trial) deliveredValues(r bench.UDPResult, multiple float64) values {
	delivered := float64(r.InTime) / float64(max(r.Sent, 1))
	multiple *= float64(r.Sent) / (float64(max(r.Rate, 1)) * r.Seconds)
	return values{number(100 * delivered), number(100 * delivered / t.path.roundTrips(multiple))}
}

func runHalf(ctx context.Context, t *trial) (values, error) {
	const multiple = 0.5
	var r bench.UDPResult
	wire, err := t.do(ctx, t.bulk(multiple), &r)
	return append(t.deliveredValues(r, multiple),
		positive(r.RTT.P50/1000), positive(r.RTT.P99/1000), positive(r.CPUPerMillion), over(wire, 2*r.InTime*bulkSize)), err
}

func runOver(ctx context.Context, t *trial) (values, error) {
	const multiple = 1.2
	var call, bulk bench.UDPResult
	err := t.both(ctx, t.call(voice, streamWarmup, t.duration), &call, t.bulk(multiple), &bulk)
	return append(t.deliveredValues(bulk, multiple), callValues(call)...), err
}

func runHTTP3(ctx context.Context, t *trial) (values, error) {
	var r http3Result
	_, err := t.do(ctx, task{Kind: kindHTTP3, Target: http3Addr, Warmup: streamWarmup, Duration: t.duration}, &r)
	return values{number(r.Mbit)}, err
}

// both runs a task beside a neighbour that lasts a little longer.
func (t *trial) both(ctx context.Context, small task, r any, neighbour task, n any) error {
	neighbour.Duration = small.Warmup + small.Duration - neighbour.Warmup + time.Second
	var running sync.WaitGroup
	var failed error
	running.Go(func() { _, failed = t.do(ctx, neighbour, n) })
	_, err := t.do(ctx, small, r)
	running.Wait()
	if err == nil {
		err = failed
	}
	return err
}
