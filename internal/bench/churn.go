package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
)

// ChurnConfig configures a load of associations that are opened, used once and closed.
type ChurnConfig struct {
	Common
	Workers int // associations at a time
	Size    int // of the datagram, in bytes
}

// ChurnResult is the result of a ChurnConfig. Life is the time to open an association,
// make a round trip and close it.
type ChurnResult struct {
	Outcome
	Workers   int     `json:"workers"`
	Size      int     `json:"size"`
	Done      int64   `json:"associations"`
	PerSecond float64 `json:"associations_per_second"`
	Again     int64   `json:"datagrams_again"` // sent again
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

// failuresInRow is the number of failures in a row after which a worker ends.
const failuresInRow = 10

// Churn runs the load. If ctx ends early, it returns the figures so far and no error. It
// returns an error if no association could be used.
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
	// The load ends early if all workers do.
	var waiter sync.WaitGroup
	waiter.Go(func() { workers.Wait(); stop() })
	l.cfg.watch(running, l.recorder, func(_ Point, rate string) string {
		return fmt.Sprintf("%s associations/s · %s failed", rate, humanize.Comma(l.failed.Load()))
	})
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

// work opens, uses and closes associations until ctx ends.
func (l *churn) work(ctx context.Context) {
	p := newPinger(&l.cfg.Common, l.cfg.Size, l.run)
	for row := 0; row < failuresInRow && ctx.Err() == nil; {
		began := time.Now()
		again, err := l.useOnce(ctx, p)
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

// useOnce opens an association, makes a round trip and closes it.
func (l *churn) useOnce(ctx context.Context, p *pinger) (again int, err error) {
	a, err := openAssociation(ctx, &l.cfg.Way)
	if err != nil {
		return 0, err
	}
	defer a.close()
	return p.ping(ctx, a)
}
