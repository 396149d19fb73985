//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"wmproxy/certs"
	"wmproxy/internal/bench"
	"wmproxy/internal/netlab"
	"wmproxy/tools/stage"
)

// row is a system with a congestion control of the kernel.
type row struct{ System, Congestion string }

// cell is what one row did with one load.
type cell struct {
	row
	Load   string
	Rounds []values `json:",omitempty"`
	Failed string   `json:",omitempty"` // why there are no more rounds
	// Late is how much later than due the path let 99 of 100 packets leave, at worst; Held
	// the largest share of datagrams that the load could not send in time.
	Late time.Duration
	Held float64
}

// results are all figures of a path, of one run.
type results struct {
	Path     string
	Began    time.Time
	Took     time.Duration
	Command  string
	Facts    [][2]string
	Rounds   int
	Duration time.Duration
	Checks   []check
	Cells    []*cell
	Absent   map[string]string // systems that were not measured, and why
}

// check is what the path itself did with bare flows, beside what was asked of it.
type check struct {
	Title       string
	Asked, Got  number
	Unit        string
	Tolerance   number // of Got below Asked, or above for times
	Larger      bool   // more is worse
	Late        time.Duration
	Overrun     int
	Busy        number // share of one processor that the path itself took
	LoadAverage string
}

// host makes networks for this program; it ends them and reports what fails.
type host struct{ cleanups []func() }

// failure is a panic of host.
type failure struct{ error }

func (h *host) Helper()                   {}
func (h *host) Cleanup(f func())          { h.cleanups = append(h.cleanups, f) }
func (h *host) Fatal(args ...any)         { panic(failure{errors.New(fmt.Sprint(args...))}) }
func (h *host) Fatalf(f string, a ...any) { panic(failure{fmt.Errorf(f, a...)}) }

func (h *host) end() {
	for _, f := range slices.Backward(h.cleanups) {
		f()
	}
	h.cleanups = nil
}

// say writes a line about the progress.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func run(ctx context.Context, o options) error {
	if o.render {
		return writePage(o.out)
	}
	if err := netlab.Missing(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "benchroad-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.wmproxy == "" {
		o.wmproxy = filepath.Join(dir, "wmproxy")
		if err := stage.BuildWmproxy(ctx, o.wmproxy); err != nil {
			return err
		}
	} else if o.wmproxy, err = filepath.Abs(o.wmproxy); err != nil {
		return err
	}
	for _, p := range paths {
		if !slices.Contains(o.paths, p.name) {
			continue
		}
		r, err := measurePath(ctx, o, p, dir)
		if ctx.Err() != nil {
			return context.Cause(ctx) // the path's earlier results stay
		}
		if len(r.Cells) > 0 || len(r.Checks) > 0 {
			err = errors.Join(err, r.save(o.out))
		}
		if err != nil {
			return err
		}
	}
	return writePage(o.out)
}

// session is the measuring of one path.
type session struct {
	options
	*rig
	results *results
	silent  map[string]string // systems whose datagrams do not pass, and why
}

func measurePath(ctx context.Context, o options, p path, dir string) (r *results, err error) {
	r = &results{
		Path: p.name, Began: time.Now(), Command: o.command, Facts: facts(ctx),
		Rounds: o.rounds, Duration: o.duration, Absent: map[string]string{},
	}
	defer func() { r.Took = time.Since(r.Began) }()
	h := new(host)
	defer h.end()
	defer func() {
		if caught := recover(); caught != nil {
			f, ours := caught.(failure)
			if !ours {
				panic(caught)
			}
			err = f
		}
	}()
	if dir, err = os.MkdirTemp(dir, p.name+"-"); err != nil {
		return r, err
	}
	n := netlab.New(h, netlab.Config{Path: p.directions()})
	for _, each := range []*netlab.Host{n.Home, n.Servers[0], n.Targets} {
		each.Set("ipv4/tcp_no_metrics_save", "1") // a connection knows nothing of earlier ones
	}
	g := &rig{Net: n, path: p, dir: dir, wmproxy: o.wmproxy, cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	if _, err := certs.LoadOrCreate(g.cert, g.key); err != nil {
		return r, err
	}
	for _, at := range [][]string{{echoAddr, http3Addr}, {callAddr, unused}} {
		target, err := g.startTarget(ctx, at)
		if err != nil {
			return r, err
		}
		defer target.End()
	}
	s := &session{options: o, rig: g, results: r, silent: map[string]string{}}
	if err := s.check(ctx); err != nil {
		return r, err
	}
	for _, l := range loads {
		if !slices.Contains(o.loads, l.name) {
			continue
		}
		if err := s.measure(ctx, l); err != nil {
			return r, err
		}
	}
	return r, nil
}

// startTarget starts what listens at the targets.
func (r *rig) startTarget(ctx context.Context, at []string) (*stage.Process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := start(r.Targets, r.dir, exe, farCommand, at[0], at[1], r.cert, r.key)
	return started(ctx, p, err, farReady)
}

// rows are the systems to measure with a load, and congestion controls of the kernel.
func (s *session) rows(l load) (all []row) {
	for _, system := range systems {
		if !slices.Contains(s.systems, system.name) {
			continue
		}
		if program := system.missing(); program != "" {
			s.results.Absent[system.name] = program + " is not installed"
			continue
		}
		for i, congestion := range s.congestion {
			// Datagrams go over TCP through yamux alone.
			if i == 0 || system.tcp && (l.streams || system.name == "yamux") {
				all = append(all, row{system.name, congestion})
			}
		}
	}
	return all
}

// measure runs a load in alternating rounds: each begins with another row, so that none
// always follows the same one.
func (s *session) measure(ctx context.Context, l load) error {
	rows := s.rows(l)
	cells := map[row]*cell{}
	for _, r := range rows {
		cells[r] = &cell{row: r, Load: l.name}
		s.results.Cells = append(s.results.Cells, cells[r])
	}
	for round := range s.rounds {
		for i := range rows {
			c := cells[rows[(i+round)%len(rows)]]
			if c.Failed != "" {
				continue
			}
			v, err := s.once(ctx, l, c, round)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				c.Failed = err.Error()
				say("%s %s %s %s: %v", s.path.name, l.name, c.System, c.Congestion, err)
				continue
			}
			c.Rounds = append(c.Rounds, v)
			say("%s %s %s %s: %s", s.path.name, l.name, c.System, c.Congestion, l.text(v))
		}
	}
	return nil
}

// settle is how long a tunnel is idle before its load.
const settle = time.Second

// once starts a system, runs a load and ends it.
func (s *session) once(ctx context.Context, l load, c *cell, round int) (values, error) {
	if why := s.silent[c.System]; why != "" && l.datagrams && !l.streams {
		return nil, errors.New(why)
	}
	system := systems[slices.IndexFunc(systems, func(x system) bool { return x.name == c.System })]
	for _, h := range []*netlab.Host{s.Home, s.Servers[0], s.Targets} {
		h.SetCongestion(c.Congestion)
	}
	dir, err := os.MkdirTemp(s.dir, "trial-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	g := *s.rig
	g.dir = dir
	p, err := g.startFar(ctx, system)
	if err != nil {
		return nil, err
	}
	defer p.end()
	t := &trial{rig: &g, system: c.System, peer: p, duration: s.duration, mu: new(sync.Mutex)}
	s.Restart(s.seed + uint64(round))
	t.began = time.Now()
	if system.near != nil {
		if err := g.startNear(system, p); err != nil {
			return nil, err
		}
		if !l.cold {
			if err := s.await(ctx, t, l); err != nil {
				return nil, err
			}
			s.Restart(s.seed + uint64(round))
		}
	}
	v, err := l.run(ctx, t)
	for _, traffic := range s.Traffic() {
		c.Late = max(c.Late, traffic.Late99)
		if traffic.Overrun > 0 {
			err = fmt.Errorf("the path dropped %d packets that it should have kept", traffic.Overrun)
		}
	}
	c.Held = max(c.Held, t.held)
	return v, err
}

// await waits until the tunnel carries what the load needs. What does not pass is not
// tried again on the path.
func (s *session) await(ctx context.Context, t *trial, l load) error {
	var r firstResult
	if _, err := t.do(ctx, task{Kind: kindCold, Target: echoAddr, Stream: l.streams, Datagram: l.datagrams, Since: t.began}, &r); err != nil {
		return err
	}
	if (!l.streams || r.Connect == 0) && (!l.datagrams || r.Associate == 0) {
		why := fmt.Errorf("nothing passes within %v: %s", coldTimeout, t.peer.processes[1].LastLine())
		if l.datagrams && !l.streams {
			s.silent[t.system] = why.Error()
		}
		return why
	}
	time.Sleep(settle)
	return nil
}

// check measures bare flows over the path.
func (s *session) check(ctx context.Context) error {
	for _, h := range []*netlab.Host{s.Home, s.Servers[0], s.Targets} {
		h.SetCongestion("bbr")
	}
	t := &trial{rig: s.rig, peer: new(peer), duration: checkTime, mu: new(sync.Mutex)}
	began := time.Now()
	restart := func() {
		began = time.Now()
		s.Restart(s.seed)
	}
	add := func(c check) {
		for _, traffic := range s.Traffic() {
			c.Late, c.Overrun = max(c.Late, traffic.Late99), c.Overrun+traffic.Overrun
			c.Busy = number(traffic.CPU.Seconds() / time.Since(began).Seconds())
		}
		c.LoadAverage = stage.FileLine("/proc/loadavg")
		s.results.Checks = append(s.results.Checks, c)
		say("%s %s: asked %.4g, got %.4g %s; late by %v", s.path.name, c.Title, c.Asked, c.Got, c.Unit, c.Late)
	}
	restart()
	var flow bench.TCPResult
	if _, err := t.do(ctx, t.stream(kindDown, 1), &flow); err != nil {
		return err
	}
	add(check{Title: "one TCP stream down, bbr, at most", Asked: number(s.path.goodput()), Got: megabits(flow), Unit: "Mbit/s", Tolerance: number(0.15 + 8*s.path.each.Loss)})
	if s.path.each.BlockUDP {
		return nil
	}
	restart()
	var ping bench.UDPResult
	if _, err := t.do(ctx, t.call(voice, 0, checkTime), &ping); err != nil {
		return err
	}
	// Jitter is uniform on both ways.
	asked := milliseconds(s.path.rtt + s.path.each.Jitter)
	add(check{Title: "round trip of a datagram, median", Asked: number(asked), Got: number(ping.RTT.P50 / 1000), Unit: "ms", Tolerance: number((2 + 0.3*milliseconds(s.path.each.Jitter)) / asked), Larger: true})
	restart()
	var bulk bench.UDPResult
	if _, err := t.do(ctx, t.bulk(checkShare), &bulk); err != nil {
		return err
	}
	add(check{Title: "datagrams at 80 % of the rate, that come back", Asked: number(100 * s.path.roundTrips(checkShare)), Got: t.deliveredValues(bulk, checkShare)[0], Unit: "%", Tolerance: 0.02})
	return nil
}

const (
	checkTime  = 5 * time.Second
	checkShare = 0.8
)

// passed reports whether the path did what was asked.
func (c check) passed() bool {
	off := float64(c.Asked-c.Got) / float64(c.Asked)
	if c.Larger {
		off = -off
	}
	return off <= float64(c.Tolerance) && off >= -0.05 && c.Late <= trusted && c.Overrun == 0
}

// trusted is how late 99 of 100 packets may leave the path for a round to count as measured.
const trusted = time.Millisecond

// median is that of one figure over the rounds, NaN if one is missing.
func (c *cell) median(figure int) float64 {
	var all []float64
	for _, v := range c.Rounds {
		all = append(all, float64(v[figure]))
	}
	return stage.Median(all)
}
