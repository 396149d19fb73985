package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"wmproxy/internal/bench"
)

// load is a load that is run through all systems.
type load struct {
	name   string
	title  string
	args   []string
	fresh  bool // needs new processes with no others beside them
	holds  bool // takes --assoc and --settle
	once   bool // has one long round
	figure []figure
	read   func([]byte) (values, error)
	// steps, if set, runs bench several times, instead of args and read. neighbour has a
	// target of its own.
	steps func(ctx context.Context, o options, do, neighbour bencher) (values, error)
}

// bencher runs wmproxy bench on one system and returns its JSON.
type bencher func(ctx context.Context, args ...string) ([]byte, error)

// values is the results of a round, in the order of the load's figures. Those that were not
// measured are NaN.
type values []float64

// figure is a column of a load's table.
type figure struct {
	title  string
	unit   string
	ratio  bool // also shown as a multiple of the baseline's
	digits int  // after the point
}

var udpFigures = []figure{
	{"round trips/s", "", true, 0},
	{"CPU-s per million", "", true, 1},
	{"RTT p50", "µs", true, 0},
	{"RTT p99", "µs", true, 0},
	{"lost", "%", false, 3},
}

var tcpFigures = []figure{
	{"rate", "Gbit/s", true, 2},
	{"CPU-s per GB", "", true, 2},
}

var loads = []load{
	udp("64", "64 B, 4 associations × 32 in flight", "--size=64", "--assoc=4", "--window=32"),
	udp("200", "200 B, 64 associations × 4 in flight", "--size=200", "--assoc=64", "--window=4"),
	udp("1200", "1,200 B, 4 associations × 32 in flight", "--size=1200", "--assoc=4", "--window=32"),
	udp("8000", "8,000 B, 2 associations × 4 in flight", "--size=8000", "--assoc=2", "--window=4"),
	udp("pingpong", "64 B ping-pong, 1 in flight", "--size=64", "--assoc=1", "--window=1"),
	udp("rate", "160 B, 5,000/s over 20 associations", "--size=160", "--assoc=20", "--rate=5000"),
	udp("flood", "200 B, 40,000/s on one association", "--size=200", "--assoc=1", "--rate=40000"),
	tcp("tcp-up", "CONNECT, 4 streams up", "up"),
	tcp("tcp-down", "CONNECT, 4 streams down", "down"),
	{
		name: "beside-flood", title: "160 B, 50/s on one association beside a flood on another",
		args: []string{"udp", "--size=160", "--assoc=1", "--rate=50"}, figure: besideFigures("round trips/s", 0), steps: besideFlood, once: true,
	},
	{
		name: "beside-tcp", title: "160 B, 50/s on one association beside a CONNECT download",
		args: []string{"udp", "--size=160", "--assoc=1", "--rate=50"}, figure: besideFigures("Gbit/s", 2), steps: besideDownload, once: true,
	},
	{
		name: "churn", title: "associations opened, used once and closed, 16 at a time", args: []string{"churn", "--workers=16"}, fresh: true,
		figure: []figure{{"associations/s", "", true, 0}, {"CPU ms each", "", true, 3}, {"life p50", "µs", true, 0}, {"life p99", "µs", true, 0}, {"failed", "", false, 0}},
		read:   readChurn,
	},
	{
		name: "hold", title: "associations held open", args: []string{"hold"}, fresh: true, holds: true, once: true,
		figure: []figure{{"KB of RSS each", "", true, 1}, {"KB of PSS each", "", true, 1}, {"answered at the end", "%", false, 2}, {"RSS afterwards, of before", "%", false, 0}, {"RSS before", "MB", false, 1}},
		read:   readHold,
	},
}

func udp(name, title string, args ...string) load {
	return load{name: name, title: title, args: append([]string{"udp"}, args...), figure: udpFigures, read: readUDP}
}

func tcp(name, title, direction string) load {
	return load{name: name, title: title, args: []string{"tcp", "--streams=4", "--dir=" + direction}, figure: tcpFigures, read: readTCP}
}

func loadNames() (names []string) {
	for _, l := range loads {
		names = append(names, l.name)
	}
	return names
}

// measure runs the load once on one system.
func (l load) measure(ctx context.Context, o options, do, neighbour bencher) (values, error) {
	if l.steps != nil {
		return l.steps(ctx, o, do, neighbour)
	}
	b, err := do(ctx, l.arguments(o)...)
	if err != nil {
		return nil, err
	}
	return l.read(b)
}

// arguments returns bench's arguments for the load.
func (l load) arguments(o options) []string {
	if l.holds {
		return append(slices.Clone(l.args), "--dur=1s", fmt.Sprintf("--assoc=%d", o.hold), fmt.Sprintf("--settle=%v", o.settle))
	}
	return append(slices.Clone(l.args), fmt.Sprintf("--dur=%v", o.duration))
}

// arguments returns bench's arguments for the system and the target.
func (p *peer) arguments(target string) []string {
	if p.target != "" {
		target = p.target
	}
	args := []string{"--json", "--target=" + target}
	if p.socks == "" {
		args = append(args, "--direct")
	} else {
		args = append(args, "--socks="+p.socks)
	}
	var pids []string
	for _, process := range p.processes {
		pids = append(pids, strconv.Itoa(process.PID()))
	}
	if len(pids) > 0 {
		args = append(args, "--pids="+strings.Join(pids, ","))
	}
	return args
}

func readUDP(b []byte) (values, error) {
	var r bench.UDPResult
	err := json.Unmarshal(b, &r)
	return values{r.PerSecond, ofProcesses(r.CPUPerMillion, r.Outcome), r.RTT.P50, r.RTT.P99, r.LossPercent}, err
}

func readTCP(b []byte) (values, error) {
	var r bench.TCPResult
	err := json.Unmarshal(b, &r)
	return values{r.UpGbit + r.DownGbit, ofProcesses(r.CPUPerGB, r.Outcome)}, err
}

func readChurn(b []byte) (values, error) {
	var r bench.ChurnResult
	err := json.Unmarshal(b, &r)
	return values{r.PerSecond, ofProcesses(r.CPUMillis, r.Outcome), r.Life.P50, r.Life.P99, float64(r.Failed)}, err
}

func readHold(b []byte) (values, error) {
	var r bench.HoldResult
	err := json.Unmarshal(b, &r)
	answered := float64(r.Again) / float64(max(r.Associations, 1)) * 100
	return values{
		ofProcesses(r.PerRSS/1e3, r.Outcome), ofProcesses(r.PerPSS/1e3, r.Outcome), answered,
		ofProcesses(r.AfterOf, r.Outcome), ofProcesses(float64(r.Before.RSS)/1e6, r.Outcome),
	}, err
}

// ofProcesses returns a figure of the system's processes, or NaN if it has none.
func ofProcesses(v float64, o bench.Outcome) float64 {
	if len(o.Processes) == 0 {
		return nan
	}
	return v
}
