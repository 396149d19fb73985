package bench

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// TCPConfig configures a load of streams at full speed.
type TCPConfig struct {
	Common
	Streams  int // connections in each direction
	Up, Down bool
	Mark     int64 // bytes after which TCPResult.Marked is taken; 0 for none
}

// TCPResult is the result of a TCPConfig. Up counts the bytes that arrived at the target,
// Down those that arrived here.
type TCPResult struct {
	Outcome
	Streams   int     `json:"streams"`
	UpBytes   int64   `json:"up_bytes"`
	DownBytes int64   `json:"down_bytes"`
	UpGbit    float64 `json:"up_gbit_per_second"`
	DownGbit  float64 `json:"down_gbit_per_second"`
	Marked    float64 `json:"mark_seconds,omitempty"` // until TCPConfig.Mark; 0 if it was not reached
	Broken    int     `json:"streams_broken"`         // ended early

	CPUPerGB float64   `json:"cpu_seconds_per_gb,omitempty"`
	Series   []float64 `json:"series_gbit"` // up and down together
}

// tcpWarmup is the time before streams are measured, in which windows open and buffers
// fill.
const tcpWarmup = 300 * time.Millisecond

// tcpLoad is a running load.
type tcpLoad struct {
	cfg    TCPConfig
	conns  []*net.TCPConn
	ups    []*atomic.Int64 // the target's totals
	down   atomic.Int64
	broken atomic.Int64
	ending atomic.Bool
	began  time.Time
}

// TCP runs a load of streams. If ctx ends early, it returns the figures so far and no
// error.
func TCP(ctx context.Context, cfg TCPConfig) (TCPResult, error) {
	l := &tcpLoad{cfg: cfg, began: time.Now()}
	if err := l.cfg.prepare(ctx); err != nil {
		return TCPResult{}, err
	}
	var modes []byte
	for range cfg.Streams {
		if cfg.Up {
			modes = append(modes, modeUp)
		}
		if cfg.Down {
			modes = append(modes, modeDown)
		}
	}
	if err := l.dial(ctx, modes); err != nil {
		return TCPResult{}, err
	}
	var streams sync.WaitGroup
	defer streams.Wait()
	defer l.close()
	for i, mode := range modes {
		l.run(&streams, l.conns[i], mode)
	}
	return l.measure(ctx)
}

// dial opens a connection for each mode.
func (l *tcpLoad) dial(ctx context.Context, modes []byte) error {
	l.conns = make([]*net.TCPConn, len(modes))
	work, dialing := errgroup.WithContext(ctx)
	work.SetLimit(openers)
	for i := range modes {
		work.Go(func() (err error) {
			if l.conns[i], err = l.cfg.connect(dialing); err != nil {
				return err
			}
			// greet returns when the connection is closed.
			defer context.AfterFunc(dialing, func() { _ = l.conns[i].Close() })()
			return greet(l.conns[i], modes[i])
		})
	}
	if err := work.Wait(); err != nil {
		l.close()
		if ctx.Err() != nil {
			err = context.Cause(ctx) // streams return other errors because of it
		}
		return describe(&l.cfg.Way, err)
	}
	return nil
}

// connect opens a stream to the target.
func (w *Way) connect(ctx context.Context) (*net.TCPConn, error) {
	var conn net.Conn
	var err error
	if w.Socks == "" {
		dialer := net.Dialer{Timeout: handshakeTimeout}
		conn, err = dialer.DialContext(ctx, "tcp", w.direct.String())
	} else {
		conn, err = w.client().Connect(ctx, w.Target)
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// run starts a stream.
func (l *tcpLoad) run(streams *sync.WaitGroup, c *net.TCPConn, mode byte) {
	end := func() {
		if !l.ending.Load() {
			l.broken.Add(1)
		}
	}
	if mode == modeDown {
		streams.Go(func() { l.drain(c); end() })
		return
	}
	total := new(atomic.Int64)
	l.ups = append(l.ups, total)
	streams.Go(func() { source(c) })
	streams.Go(func() { readTotals(c, total); end() })
}

// readTotals stores the totals that the target sends.
func readTotals(c net.Conn, total *atomic.Int64) {
	var b [totalLen]byte
	for {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return
		}
		total.Store(int64(binary.BigEndian.Uint64(b[:])))
	}
}

// drain reads a stream and counts its bytes.
func (l *tcpLoad) drain(c *net.TCPConn) {
	d := newDiscarder(c)
	for {
		n, err := d.discard()
		l.down.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// moved returns the number of bytes that have arrived.
func (l *tcpLoad) moved() (up, down int64) {
	for _, total := range l.ups {
		up += total.Load()
	}
	return up, l.down.Load()
}

func (l *tcpLoad) measure(ctx context.Context) (TCPResult, error) {
	marked := l.watchMark(ctx)
	m, err := l.cfg.warmUp(ctx, cmp.Or(l.cfg.Warmup, tcpWarmup))
	if err != nil {
		return TCPResult{}, err
	}
	begin := time.Now()
	up0, down0 := l.moved()
	series := l.watch(ctx)
	up, down := l.moved()
	o := l.cfg.outcome("tcp")
	o.Seconds, o.Interrupted = time.Since(begin).Seconds(), ctx.Err() != nil
	if err := m.read(&o); err != nil {
		return TCPResult{}, err
	}
	r := TCPResult{
		Outcome: o, Streams: l.cfg.Streams, UpBytes: up - up0, DownBytes: down - down0,
		Broken: int(l.broken.Load()), Series: series,
		Marked: marked().Seconds(),
	}
	r.UpGbit, r.DownGbit = gbit(r.UpBytes, o.Seconds), gbit(r.DownBytes, o.Seconds)
	if all := r.UpBytes + r.DownBytes; all > 0 {
		r.CPUPerGB = o.cpu() / float64(all) * 1e9
	}
	return r, nil
}

// markStep is how often watchMark looks.
const markStep = 5 * time.Millisecond

// watchMark measures the time from the first dial until the load has moved cfg.Mark bytes.
// The function that it returns ends the measuring and returns the time, 0 if there is none yet.
func (l *tcpLoad) watchMark(ctx context.Context) func() time.Duration {
	ctx, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	var marked time.Duration
	watcher.Go(func() {
		tick := time.NewTicker(markStep)
		defer tick.Stop()
		for l.cfg.Mark > 0 {
			select {
			case now := <-tick.C:
				if up, down := l.moved(); up+down >= l.cfg.Mark {
					marked = now.Sub(l.began)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return func() time.Duration {
		stop()
		watcher.Wait()
		return marked
	}
}

// watch shows the progress until the load's duration has passed or ctx ends, and returns
// the rate in each interval.
func (l *tcpLoad) watch(ctx context.Context) (series []float64) {
	ctx, stop := context.WithTimeout(ctx, l.cfg.Duration)
	defer stop()
	tick := time.NewTicker(max(l.cfg.Duration/points, 2*totalsEvery))
	defer tick.Stop()
	line := newProgress(l.cfg.Progress)
	defer line.clear()
	up, down := l.moved()
	last, lastAt := up+down, time.Now()
	for {
		select {
		case now := <-tick.C:
			up, down = l.moved()
			series = append(series, gbit(up+down-last, now.Sub(lastAt).Seconds()))
			last, lastAt = up+down, now
			line.show(func() string {
				return fmt.Sprintf("%s of %s · %.2f Gbit/s", time.Since(line.began).Round(100*time.Millisecond), l.cfg.Duration, series[len(series)-1])
			})
		case <-ctx.Done():
			return series
		}
	}
}

func gbit(bytes int64, seconds float64) float64 { return float64(bytes) * 8 / 1e9 / seconds }

// close ends all streams.
func (l *tcpLoad) close() {
	l.ending.Store(true)
	for _, c := range l.conns {
		if c != nil {
			_ = c.SetLinger(0) // drop the data in flight
			_ = c.Close()
		}
	}
}
