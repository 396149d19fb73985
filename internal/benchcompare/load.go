package main

import (
	"encoding/json"
	"fmt"
	"strconv"

	"wmproxy/internal/bench"
)

// load is one of those that all systems get.
type load struct {
	name   string
	title  string
	args   []string
	only   []string // systems, nil: all
	fresh  bool     // on processes that have done nothing yet, and once
	figure []figure
	read   func([]byte) (values, error)
}

// values is what one round of a load measured, in the order of its figures; NaN
// for what was not.
type values []float64

// figure is a column of a load's table.
type figure struct {
	title string
	unit  string
	ratio bool // also shown as a multiple of the baseline's
	round int  // digits after the point
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
	{
		name: "churn", title: "associations opened, used once and closed, 16 at a time", args: []string{"churn", "--workers=16"},
		figure: []figure{{"associations/s", "", true, 0}, {"CPU ms each", "", true, 3}, {"life p50", "µs", true, 0}, {"life p99", "µs", true, 0}, {"failed", "", false, 0}},
		read:   readChurn,
	},
	tcp("tcp-up", "CONNECT, 4 streams up", "up"),
	tcp("tcp-down", "CONNECT, 4 streams down", "down"),
	{
		name: "hold", title: "associations held open", args: []string{"hold"}, fresh: true,
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

// arguments is the whole command line of a load.
func (l load) arguments(o options, p *peer, target string) []string {
	args := append([]string{"bench"}, l.args...)
	args = append(args, "--json", "--target="+target)
	if p.socks == "" {
		args = append(args, "--direct")
	} else {
		args = append(args, "--socks="+p.socks)
	}
	pids := ""
	for _, process := range p.processes {
		pids += "," + strconv.Itoa(process.pid())
	}
	if pids != "" {
		args = append(args, "--pids="+pids[1:])
	}
	if l.fresh {
		return append(args, "--dur=1s", fmt.Sprintf("--assoc=%d", o.hold), fmt.Sprintf("--settle=%v", o.settle))
	}
	return append(args, fmt.Sprintf("--dur=%v", o.duration))
}

func readUDP(b []byte) (values, error) {
	var r bench.UDPResult
	err := json.Unmarshal(b, &r)
	return values{r.PerSecond, spent(r.CPUPerMillion, r.Outcome), r.RTT.P50, r.RTT.P99, r.LossPercent}, err
}

func readTCP(b []byte) (values, error) {
	var r bench.TCPResult
	err := json.Unmarshal(b, &r)
	return values{r.UpGbit + r.DownGbit, spent(r.CPUPerGB, r.Outcome)}, err
}

func readChurn(b []byte) (values, error) {
	var r bench.ChurnResult
	err := json.Unmarshal(b, &r)
	return values{r.PerSecond, spent(r.CPUMillis, r.Outcome), r.Life.P50, r.Life.P99, float64(r.Failed)}, err
}

func readHold(b []byte) (values, error) {
	var r bench.HoldResult
	err := json.Unmarshal(b, &r)
	answered := float64(r.Again) / float64(max(r.Associations, 1)) * 100
	return values{
		spent(r.PerRSS/1e3, r.Outcome), spent(r.PerPSS/1e3, r.Outcome), answered,
		spent(r.AfterOf, r.Outcome), spent(float64(r.Before.RSS)/1e6, r.Outcome),
	}, err
}

// spent is a figure that needs processes to account for.
func spent(v float64, o bench.Outcome) float64 {
	if len(o.Processes) == 0 {
		return nan
	}
	return v
}
