package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
)

// HoldConfig configures a load of associations that stay open, for Duration.
type HoldConfig struct {
	Common
	Associations int
	Size         int           // of the datagrams, in bytes
	Settle       time.Duration // from their end to the last measurement of memory
}

// HoldResult is the result of a HoldConfig. Memory is the sum over PIDs, in bytes.
type HoldResult struct {
	Outcome
	Associations int    `json:"associations"`
	Size         int    `json:"size"`
	Opened       int64  `json:"opened"`
	First        int64  `json:"answered_first"` // just after they were opened
	Again        int64  `json:"answered_again"` // before they were closed
	Ended        int    `json:"ended_by_server"`
	Reason       string `json:"first_failure,omitempty"`

	Before  Memory  `json:"memory_before"`
	Held    Memory  `json:"memory_held"`
	After   Memory  `json:"memory_after"`                // Settle after the end
	PerRSS  float64 `json:"bytes_per_association"`       // of RSS
	PerPSS  float64 `json:"pss_bytes_per_association"`   // 0 if it cannot be read
	AfterOf float64 `json:"memory_after_percent_before"` // of RSS

	OpenSeconds float64 `json:"open_seconds"`
}

// Memory is resident memory in bytes. PSS counts memory that processes share only once.
type Memory struct {
	RSS int64 `json:"rss_bytes"`
	PSS int64 `json:"pss_bytes,omitempty"`
}

// memoryOf returns the sum over pids.
func memoryOf(pids []int) (m Memory) {
	for _, pid := range pids {
		rss, pss := readMemory(pid)
		m.RSS, m.PSS = m.RSS+rss, m.PSS+pss
	}
	return m
}

type hold struct {
	cfg  HoldConfig
	run  uint32
	line *progress

	all   []association
	first atomic.Pointer[error]
}

// Hold runs the load. If ctx ends early, it returns the figures so far and no error. It
// returns an error if no association was answered.
func Hold(ctx context.Context, cfg HoldConfig) (HoldResult, error) {
	l := &hold{cfg: cfg, run: rand.Uint32(), line: newProgress(cfg.Progress), all: make([]association, cfg.Associations)}
	defer l.line.clear()
	if err := l.cfg.prepare(ctx); err != nil {
		return HoldResult{}, err
	}
	m, err := newMeter(cfg.PIDs)
	if err != nil {
		return HoldResult{}, err
	}
	r := HoldResult{Outcome: l.cfg.outcome("hold"), Associations: cfg.Associations, Size: cfg.Size, Before: memoryOf(cfg.PIDs)}
	begin := time.Now()
	r.Opened, r.First = l.open(ctx)
	r.OpenSeconds = time.Since(begin).Seconds()
	if err := l.first.Load(); err != nil && r.First == 0 {
		l.close()
		return r, describe(&l.cfg.Way, *err)
	}
	l.pause(ctx, "held for", cfg.Duration)
	r.Held = memoryOf(cfg.PIDs)
	r.Again = l.ask(ctx)
	r.Ended = l.ended()
	l.close()
	l.pause(ctx, "closed for", cfg.Settle)
	r.After = memoryOf(cfg.PIDs)
	r.Seconds, r.Interrupted = time.Since(begin).Seconds(), ctx.Err() != nil
	err = m.read(&r.Outcome)
	r.compare()
	if reason := l.first.Load(); reason != nil {
		r.Reason = (*reason).Error()
	}
	return r, err
}

// compare sets the fields that follow from the memory before, during and after the load.
func (r *HoldResult) compare() {
	if r.Opened == 0 || r.Before.RSS == 0 {
		return
	}
	r.PerRSS = float64(r.Held.RSS-r.Before.RSS) / float64(r.Opened)
	if r.Before.PSS > 0 {
		r.PerPSS = float64(r.Held.PSS-r.Before.PSS) / float64(r.Opened)
	}
	r.AfterOf = percent(r.After.RSS, r.Before.RSS)
}

// each calls f for every association, on openers goroutines, until ctx ends.
func (l *hold) each(ctx context.Context, doing string, f func(*pinger, *association) error) {
	var next, done atomic.Int64
	var workers sync.WaitGroup
	for range openers {
		workers.Go(func() {
			p := newPinger(&l.cfg.Common, l.cfg.Size, l.run)
			for i := next.Add(1) - 1; i < int64(len(l.all)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				err := f(p, &l.all[i])
				done.Add(1)
				if err != nil && !interrupted(ctx, err) {
					l.first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	finished := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				l.line.show(func() string {
					return fmt.Sprintf("%s %s of %s", doing, humanize.Comma(done.Load()), humanize.Comma(int64(len(l.all))))
				})
			case <-finished:
				return
			}
		}
	})
	workers.Wait()
	close(finished)
	watcher.Wait()
}

// open opens all associations and makes a round trip on each.
func (l *hold) open(ctx context.Context) (opened, answered int64) {
	var open, ok atomic.Int64
	l.each(ctx, "opened", func(p *pinger, a *association) (err error) {
		if *a, err = openAssociation(ctx, &l.cfg.Way); err != nil {
			*a = association{}
			return err
		}
		open.Add(1)
		if _, err = p.ping(ctx, *a); err == nil {
			ok.Add(1)
		}
		return err
	})
	return open.Load(), ok.Load()
}

// ask makes a round trip on each open association and returns the number of answers.
func (l *hold) ask(ctx context.Context) int64 {
	var ok atomic.Int64
	l.each(ctx, "asked", func(p *pinger, a *association) error {
		if a.udp == nil {
			return nil
		}
		_, err := p.ping(ctx, *a)
		if err == nil {
			ok.Add(1)
		}
		return err
	})
	return ok.Load()
}

// ended returns the number of associations that the server has ended.
func (l *hold) ended() int {
	var controls []*net.TCPConn
	for i := range l.all {
		if c := l.all[i].control; c != nil {
			controls = append(controls, c)
		}
	}
	return hungUp(controls)
}

func (l *hold) close() {
	for i := range l.all {
		l.all[i].close()
		l.all[i] = association{}
	}
}

// pause waits until d has passed or ctx ends.
func (l *hold) pause(ctx context.Context, doing string, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	began := time.Now()
	for {
		select {
		case <-tick.C:
			l.line.show(func() string {
				return fmt.Sprintf("%s %s of %s", doing, time.Since(began).Round(100*time.Millisecond), d)
			})
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
