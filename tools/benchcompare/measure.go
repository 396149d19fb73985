package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wmproxy/certs"
	"wmproxy/tools/stage"
)

var nan = math.NaN()

// cell is the results of a load on a system in an arrangement.
type cell struct {
	rounds []values
	failed string // the error after which there are no more rounds
}

type key struct{ arrangement, load, system string }

// comparison is the results of a run of the program.
type comparison struct {
	options
	log      io.Writer
	cells    map[key]*cell
	absent   map[string]string // the reasons by system that was not measured
	began    time.Time
	revision string // of wmproxy
	partial  bool   // interrupted
}

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "benchcompare-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.wmproxy == "" {
		o.wmproxy = filepath.Join(dir, "wmproxy")
		if err := stage.BuildWmproxy(ctx, o.wmproxy); err != nil {
			return err
		}
	}
	c := &comparison{options: o, log: os.Stderr, cells: make(map[key]*cell), absent: make(map[string]string), began: time.Now(), revision: stage.Revision(ctx)}
	for _, arrangement := range o.arrangements {
		if err := c.arrange(ctx, dir, arrangement); err != nil && ctx.Err() == nil {
			return err
		}
	}
	c.partial = ctx.Err() != nil
	if len(c.cells) == 0 {
		return errors.New("nothing was measured")
	}
	return c.write(context.WithoutCancel(ctx))
}

// arrange runs all loads in an arrangement.
func (c *comparison) arrange(ctx context.Context, dir, arrangement string) error {
	dir, err := os.MkdirTemp(dir, arrangement+"-")
	if err != nil {
		return err
	}
	r := &rig{dir: dir, arrangement: arrangement, wmproxy: c.wmproxy}
	r.cert, r.key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if _, err := certs.LoadOrCreate(r.cert, r.key); err != nil {
		return err
	}
	// Neighbours have a target of their own: Go's runtime polls the network when it has
	// nothing else to do, so a process that fills a stream delays its datagrams.
	for _, target := range []*string{&r.target, &r.neighbour} {
		echo, addr, err := r.echo(ctx)
		if err != nil {
			return err
		}
		defer echo.End()
		*target = addr
	}
	running, err := c.begin(ctx, r)
	stop := func() {
		for name, p := range running {
			p.end()
			delete(running, name)
		}
	}
	defer stop()
	if err != nil {
		return err
	}
	for _, l := range loads {
		if !slices.Contains(c.only, l.name) {
			continue
		}
		if l.fresh {
			stop() // some systems keep sockets for minutes, and ports are few
			err = c.measureFresh(ctx, r, l)
		} else {
			err = c.measure(ctx, r, l, running)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// echo starts a target.
func (r *rig) echo(ctx context.Context) (p *stage.Process, addr string, err error) {
	addr, err = freeAddress()
	if err != nil {
		return nil, "", err
	}
	p, err = start(r.dir, r.arrangement, r.wmproxy, "bench", "echo", "--listen", addr)
	if err != nil {
		return nil, "", err
	}
	if err := p.Until(ctx, "open port", listens(addr)); err != nil {
		p.End()
		return nil, "", err
	}
	return p, addr, nil
}

// begin starts all systems that are to be measured and work.
func (c *comparison) begin(ctx context.Context, r *rig) (map[string]*peer, error) {
	running := make(map[string]*peer)
	for _, s := range c.wanted() {
		p, err := c.beginOne(ctx, r, s)
		if ctx.Err() != nil {
			return running, context.Cause(ctx)
		}
		if err != nil {
			c.absent[s.name] = err.Error()
			c.logf("%s %s: not measured: %v", r.arrangement, s.name, err)
			continue
		}
		running[s.name] = p
	}
	return running, nil
}

// wanted returns the systems to measure that are installed.
func (c *comparison) wanted() (found []system) {
	for _, s := range c.all() {
		if s.base == "" && !slices.Contains(c.systems, s.name) {
			continue
		}
		if program := s.missing(); program != "" {
			c.absent[s.name] = program + " is not installed"
			continue
		}
		found = append(found, s)
	}
	return found
}

// warmUps bounds the attempts to use a system until its tunnel is up.
const warmUps = 3

// beginOne starts a system and makes round trips through it.
func (c *comparison) beginOne(ctx context.Context, r *rig, s system) (*peer, error) {
	p, err := s.begin(ctx, r)
	if err != nil {
		return nil, err
	}
	warm := udp("", "", "--assoc=1", "--window=1")
	short := c.options
	short.duration = 50 * time.Millisecond
	do := c.bencher(r, p, r.target)
	for range warmUps {
		if _, err = do(ctx, warm.arguments(short)...); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

// roundsOf returns the number of rounds of a load.
func (c *comparison) roundsOf(l load) int {
	if l.once {
		return 1
	}
	return c.rounds
}

// measure runs a load in alternating rounds.
func (c *comparison) measure(ctx context.Context, r *rig, l load, running map[string]*peer) error {
	for round := range c.roundsOf(l) {
		for _, s := range rotated(c.wanted(), round) {
			p := running[s.name]
			if p == nil || !s.carries(l) || c.cell(r, l, s).failed != "" {
				continue
			}
			if err := c.once(ctx, r, l, s, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// rotated returns the systems in an order that begins with another one each round, so that
// none always follows the same one.
func rotated(all []system, by int) []system {
	if len(all) == 0 {
		return nil
	}
	by %= len(all)
	return append(slices.Clone(all[by:]), all[:by]...)
}

// measureFresh runs a load on each system, with new processes each time.
func (c *comparison) measureFresh(ctx context.Context, r *rig, l load) error {
	for round := range c.roundsOf(l) {
		for _, s := range rotated(c.wanted(), round) {
			if s.name == direct && l.holds || !s.carries(l) || c.absent[s.name] != "" {
				continue
			}
			p, err := c.beginOne(ctx, r, s)
			if err != nil {
				c.cell(r, l, s).failed = err.Error()
				continue
			}
			err = c.once(ctx, r, l, s, p)
			p.end()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *comparison) cell(r *rig, l load, s system) *cell {
	k := key{r.arrangement, l.name, s.name}
	if c.cells[k] == nil {
		c.cells[k] = new(cell)
	}
	return c.cells[k]
}

// once runs a round. It returns an error only if ctx ends: that a load fails on a system is
// a result.
func (c *comparison) once(ctx context.Context, r *rig, l load, s system, p *peer) error {
	v, err := l.measure(ctx, c.options, c.bencher(r, p, r.target), c.bencher(r, p, r.neighbour))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	ce := c.cell(r, l, s)
	if err != nil {
		ce.failed = err.Error()
		c.logf("%s %s %s: %v", r.arrangement, l.name, s.name, err)
		return nil
	}
	ce.rounds = append(ce.rounds, v)
	c.logf("%s %s %s: %s", r.arrangement, l.name, s.name, strings.Join(texts(l, v), ", "))
	return nil
}

func (c *comparison) logf(format string, args ...any) { fmt.Fprintf(c.log, format+"\n", args...) }

// bencher returns a function that runs bench through a peer in the rig's arrangement.
func (c *comparison) bencher(r *rig, p *peer, target string) bencher {
	return func(ctx context.Context, args ...string) ([]byte, error) {
		args = append(append([]string{"bench"}, args...), p.arguments(target)...)
		return output(ctx, r.arrangement, c.wmproxy, args...)
	}
}

// texts returns the values with their titles.
func texts(l load, v values) (all []string) {
	for i, f := range l.figure {
		all = append(all, f.title+" "+f.text(v[i]))
	}
	return all
}

// medians returns the median of each figure over the rounds.
func (c *cell) medians(l load) values {
	all := make(values, len(l.figure))
	for i := range all {
		var column []float64
		for _, v := range c.rounds {
			column = append(column, v[i])
		}
		all[i] = stage.Median(column)
	}
	return all
}
