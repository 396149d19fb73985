package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// ChurnConfig is a load of associations that are opened, used once and closed.
type ChurnConfig struct {
	Common
	Workers int // associations at a time
	Size    int // of the datagram, in bytes
}

// ChurnResult is how that went. RTT is of a whole life: open, one round trip,
// close.
type ChurnResult struct {
	Outcome
	Workers   int     `json:"workers"`
	Size      int     `json:"size"`
	Done      int64   `json:"associations"`
	PerSecond float64 `json:"associations_per_second"`
	Again     int64   `json:"datagrams_again"` // that had to be sent again
	Failed    int64   `json:"failed"`
	Reason    string  `json:"first_failure,omitempty"`

	CPUMillis float64 `json:"cpu_ms_per_association,omitempty"`

	Life   RTT     `json:"life"`
	Series []Point `json:"series"`
}

type churn struct {
	cfg      ChurnConfig
	run      uint32
	recorder *recorder

	done, again, failed atomic.Int64
	first               atomic.Pointer[error]
}

// failuresInRow is how many in a row end a worker: there is nothing to measure.
const failuresInRow = 10

// Churn runs the load. The end of ctx is no error: the result is then what was
// measured until there. It is an error if not one association could be used.
func Churn(ctx context.Context, cfg ChurnConfig) (ChurnResult, error) {
	l := &churn{cfg: cfg, run: rand.Uint32(), recorder: newRecorder()}
	if err := l.cfg.prepare(ctx); err != nil {
		return ChurnResult{}, err
	}
	m, err := newMeter(cfg.PIDs)
	if err != nil {
		return ChurnResult{}, err
	}
	running, stop := context.WithTimeout(ctx, cfg.Duration)
	defer stop()
	begin := time.Now()
	var workers sync.WaitGroup
	for range cfg.Workers {
		workers.Go(func() { l.work(running) })
	}
	// When all workers have given up there is nothing left to wait for.
	var waiter sync.WaitGroup
	waiter.Go(func() { workers.Wait(); stop() })
	l.watch(running)
	o := l.cfg.outcome("churn")
	o.Seconds, o.Interrupted = time.Since(begin).Seconds(), ctx.Err() != nil
	done := l.done.Load()
	err = m.read(&o)
	stop()
	waiter.Wait()
	if err != nil {
		return ChurnResult{}, err
	}
	return l.result(o, done)
}

func (l *churn) result(o Outcome, done int64) (ChurnResult, error) {
	first := l.first.Load()
	if done == 0 && first != nil {
		return ChurnResult{}, describe(&l.cfg.Way, *first)
	}
	r := ChurnResult{
		Outcome: o, Workers: l.cfg.Workers, Size: l.cfg.Size,
		Done: done, PerSecond: float64(done) / o.Seconds,
		Again: l.again.Load(), Failed: l.failed.Load(),
		Life: l.recorder.rtt(), Series: l.recorder.series,
	}
	if first != nil {
		r.Reason = (*first).Error()
	}
	if done > 0 {
		r.CPUMillis = o.cpu() / float64(done) * 1e3
	}
	return r, nil
}

// work opens, uses and closes until ctx ends.
func (l *churn) work(ctx context.Context) {
	t := newTraveller(&l.cfg.Common, l.cfg.Size, l.run)
	for row := 0; row < failuresInRow && ctx.Err() == nil; {
		began := time.Now()
		again, err := l.live(ctx, t)
		switch {
		case err == nil:
			row = 0
			l.done.Add(1)
			l.again.Add(int64(again))
			l.recorder.add([]int64{int64(time.Since(began))})
		case interrupted(ctx, err):
		default:
			row++
			l.failed.Add(1)
			l.first.CompareAndSwap(nil, &err)
		}
	}
}

// live is the life of one association.
func (l *churn) live(ctx context.Context, t *traveller) (again int, err error) {
	a, err := openAssociation(ctx, &l.cfg.Way)
	if err != nil {
		return 0, err
	}
	defer a.close()
	_, again, err = t.trip(ctx, a)
	return again, err
}

// watch shows how it goes until ctx ends.
func (l *churn) watch(ctx context.Context) {
	interval := max(l.cfg.Duration/points, 10*time.Millisecond)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	line := newProgress(l.cfg.Progress)
	defer line.clear()
	for {
		select {
		case <-tick.C:
			p := l.recorder.turn()
			line.show(func() string {
				return fmt.Sprintf("%s of %s · %s associations/s · %s failed", time.Since(line.began).Round(100*time.Millisecond),
					l.cfg.Duration, grouped(int64(float64(p.RoundTrips)/interval.Seconds())), grouped(l.failed.Load()))
			})
		case <-ctx.Done():
			return
		}
	}
}
