package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sync/errgroup"

	"wmproxy/internal/udpio"
)

// UDPConfig configures a load of datagrams. Exactly one of Window and Rate must be set.
type UDPConfig struct {
	Common
	Associations int
	Window       int // datagrams in flight on each association
	Rate         int // datagrams per second on all associations together
	Size         int // bytes of payload, MinSize to MaxSize
}

// UDPResult is the result of a UDPConfig.
type UDPResult struct {
	Outcome
	Associations int `json:"associations"`
	Window       int `json:"window,omitempty"`
	Rate         int `json:"rate,omitempty"`
	Size         int `json:"size"`

	PerSecond float64 `json:"round_trips_per_second"`
	Mbit      float64 `json:"mbit_per_second"` // of payload, each way
	Sent      int64   `json:"sent"`
	InTime    int64   `json:"round_trips"`
	Lost      int64   `json:"lost"` // not back within the timeout, including Late
	Late      int64   `json:"late"`
	Reordered int64   `json:"reordered"`
	Duplicate int64   `json:"duplicates"`
	Alien     int64   `json:"unexpected"` // not of this run, or of the wrong size
	Unsent    int64   `json:"unsent"`     // refused by this machine's socket buffers
	Skipped   int64   `json:"skipped"`    // not sent because the sender was delayed
	Ended     int     `json:"associations_ended"`

	LossPercent   float64 `json:"loss_percent"`
	CPUPerMillion float64 `json:"cpu_seconds_per_million,omitempty"`

	RTT    RTT     `json:"rtt"`
	Series []Point `json:"series"`
}

const (
	// openers is the number of associations that are opened at once.
	openers = 16
	// primers and primerInterval bound the wait for the target's first answer.
	primers        = 20
	primerInterval = 250 * time.Millisecond
	// rateBatch bounds the datagrams that are passed to the system at once.
	rateBatch = 64
	// drainStep is the interval of checks for outstanding datagrams at the end.
	drainStep = 5 * time.Millisecond
	// interruptedWait bounds the wait for outstanding datagrams after Ctrl-C.
	interruptedWait = time.Second
	// points is the number of intervals of a run.
	points = 48
)

// udpLoad is a running load.
type udpLoad struct {
	cfg       UDPConfig
	run       uint32
	size      int
	header    []byte // before each payload
	body      []byte // after each stamp
	timeoutNS int64
	from      int64 // when counting begins; set before anything is sent
	started   time.Time
	flows     []*flow
	recorder  *recorder
	sending   atomic.Bool
	unprimed  sync.WaitGroup
	skipped   atomic.Int64
	failed    atomic.Pointer[error]
}

func (l *udpLoad) now() int64 { return int64(time.Since(l.started)) }

// fail keeps the first error of a socket.
func (l *udpLoad) fail(err error) { l.failed.CompareAndSwap(nil, &err) }

func (l *udpLoad) err() error {
	if err := l.failed.Load(); err != nil {
		return fmt.Errorf("cannot send datagrams of %d bytes: %w", l.size, *err)
	}
	return nil
}

// UDP runs a load of datagrams. If ctx ends early, it returns the figures so far and no
// error.
func UDP(ctx context.Context, cfg UDPConfig) (UDPResult, error) {
	l := &udpLoad{
		cfg: cfg, run: rand.Uint32(), size: cfg.Size, body: filler(cfg.Size),
		timeoutNS: int64(cfg.timeout()), started: time.Now(), recorder: newRecorder(),
	}
	if err := l.cfg.prepare(ctx); err != nil {
		return UDPResult{}, err
	}
	if cfg.Socks != "" {
		l.header = udpHeader(cfg.Target)
	}
	defer l.close()
	if err := l.open(ctx); err != nil {
		return UDPResult{}, err
	}
	return l.measure(ctx)
}

// open opens all associations and waits until the target has answered on each.
func (l *udpLoad) open(ctx context.Context) error {
	l.flows = make([]*flow, l.cfg.Associations)
	work, opening := errgroup.WithContext(ctx)
	work.SetLimit(openers)
	for i := range l.flows {
		work.Go(func() error { return l.openFlow(opening, i) })
	}
	if err := work.Wait(); err != nil {
		return describe(&l.cfg.Way, err)
	}
	return l.prime(ctx)
}

func (l *udpLoad) openFlow(ctx context.Context, i int) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	f := &flow{load: l, index: uint16(i)}
	heads := rateBatch
	if l.cfg.Window > 0 {
		heads = min(l.cfg.Window, MaxWindow)
		f.slots = make([]slot, heads)
	}
	for range heads {
		f.heads = append(append(f.heads, l.header...), make([]byte, MinSize)...)
	}
	l.flows[i] = f
	cfg := udpio.Config{NoOffload: !l.cfg.Offload, ReadBuffer: socketBuffer, WriteBuffer: socketBuffer}
	if err := f.open(ctx, &l.cfg.Way, cfg); err != nil {
		return err
	}
	l.unprimed.Add(1)
	f.socket.Start(f.receive)
	return nil
}

// errNoAnswer is returned if the target echoes nothing.
var errNoAnswer = errors.New("the target does not answer")

// prime sends primers until all flows have been answered.
func (l *udpLoad) prime(ctx context.Context) error {
	answered := make(chan struct{})
	var waiter sync.WaitGroup
	waiter.Go(func() { l.unprimed.Wait(); close(answered) })
	defer waiter.Wait()
	retry := time.NewTicker(primerInterval)
	defer retry.Stop()
	for range primers {
		for _, f := range l.flows {
			f.sendPrimer()
		}
		select {
		case <-answered:
			return l.err()
		case <-retry.C:
		case <-ctx.Done():
			l.giveUp()
			return context.Cause(ctx)
		}
	}
	missing := l.giveUp()
	if err := l.err(); err != nil {
		return err
	}
	return fmt.Errorf("%w on %d of %d associations (%s, datagrams of %d bytes to %s); check that \"wmproxy bench echo\" runs there and that the server lets datagrams of this size through to it (--allow)",
		errNoAnswer, missing, len(l.flows), &l.cfg.Way, l.size, l.cfg.Target)
}

// giveUp ends the wait for unanswered flows and returns their number.
func (l *udpLoad) giveUp() (missing int) {
	for _, f := range l.flows {
		f.mu.Lock()
		if !f.primed {
			missing++
		}
		f.prime()
		f.mu.Unlock()
	}
	return missing
}

// measure runs the load for its duration.
func (l *udpLoad) measure(ctx context.Context) (UDPResult, error) {
	running, stop := context.WithTimeout(ctx, l.cfg.Warmup+l.cfg.Duration)
	defer stop()
	var senders sync.WaitGroup
	l.sending.Store(true)
	begin := l.now()
	l.from = begin + int64(l.cfg.Warmup)
	if l.cfg.Rate > 0 {
		senders.Go(func() { l.sendRate(running, begin) })
	} else {
		senders.Go(func() { l.keepWindow(running) })
	}
	m, err := l.cfg.warmUp(running, l.cfg.Warmup)
	l.cfg.watch(running, l.recorder, func(p Point, rate string) string {
		c := l.total()
		return fmt.Sprintf("%s round trips/s · RTT p50 %s p99 %s · %s outstanding", rate, microseconds(p.P50), microseconds(p.P99), humanize.Comma(c.lost()))
	})
	o := l.cfg.outcome("udp")
	o.Seconds = float64(l.now()-l.from) / 1e9
	atEnd := l.total()
	if err == nil {
		err = m.read(&o)
	}
	l.sending.Store(false)
	senders.Wait()
	if err == nil {
		err = l.err()
	}
	if err != nil {
		return UDPResult{}, err
	}
	wait := l.cfg.timeout()
	if o.Interrupted = ctx.Err() != nil; o.Interrupted {
		wait = min(wait, interruptedWait)
	}
	l.drain(wait)
	return l.result(o, atEnd), nil
}

// keepWindow fills the windows and replaces lost datagrams until ctx ends.
func (l *udpLoad) keepWindow(ctx context.Context) {
	step := time.NewTicker(max(l.cfg.timeout()/10, 10*time.Millisecond))
	defer step.Stop()
	for {
		for _, f := range l.flows {
			f.fill(l.now())
		}
		select {
		case <-step.C:
		case <-ctx.Done():
			return
		}
	}
}

// sendRate sends at the rate, on one association after the other, until ctx ends.
func (l *udpLoad) sendRate(ctx context.Context, begin int64) {
	s := newSleeper()
	p := pace{rate: int64(l.cfg.Rate)}
	next := 0
	for ctx.Err() == nil {
		n := p.due(l.now() - begin)
		each, rest := n/len(l.flows), n%len(l.flows)
		for i := range min(n, len(l.flows)) {
			count := each
			if i < rest {
				count++
			}
			l.flows[next].send(count, l.now())
			next = (next + 1) % len(l.flows)
		}
		// After a whole round, go on behind those that sent one more.
		if each > 0 {
			next = (next + rest) % len(l.flows)
		}
		l.skipped.Store(p.skipped)
		now := l.now() - begin
		s.sleep(p.next(now) - now)
	}
}

// drain waits until no datagram is outstanding, but not longer than wait.
func (l *udpLoad) drain(wait time.Duration) {
	step := time.NewTicker(drainStep)
	defer step.Stop()
	lost := time.NewTimer(wait)
	defer lost.Stop()
	for {
		if c := l.total(); c.lost() <= c.late {
			return
		}
		select {
		case <-step.C:
		case <-lost.C:
			return
		}
	}
}

func (l *udpLoad) total() (c counts) {
	for _, f := range l.flows {
		c.add(f.read())
	}
	return c
}

func (l *udpLoad) result(o Outcome, atEnd counts) UDPResult {
	all := l.total()
	r := UDPResult{
		Outcome:      o,
		Associations: l.cfg.Associations, Window: l.cfg.Window, Rate: l.cfg.Rate, Size: l.size,
		PerSecond: float64(atEnd.inTime) / o.Seconds,
		Sent:      all.sent, InTime: all.inTime, Lost: all.lost(), Late: all.late,
		Reordered: all.reordered, Duplicate: all.duplicate, Alien: all.alien,
		Unsent: all.unsent, Skipped: l.skipped.Load(),
		LossPercent: percent(all.lost(), all.sent),
		Ended:       l.ended(),
		RTT:         l.recorder.rtt(), Series: l.recorder.series,
	}
	r.Mbit = r.PerSecond * float64(l.size) * 8 / 1e6
	if atEnd.inTime > 0 {
		r.CPUPerMillion = o.cpu() / float64(atEnd.inTime) * 1e6
	}
	return r
}

// ended returns the number of associations that the server has ended.
func (l *udpLoad) ended() int {
	var controls []*net.TCPConn
	for _, f := range l.flows {
		if f.control != nil {
			controls = append(controls, f.control)
		}
	}
	return hungUp(controls)
}

// hungUp returns the number of connections that the server has closed. It sends nothing
// on them.
func hungUp(controls []*net.TCPConn) int {
	var n atomic.Int64
	var looking errgroup.Group
	looking.SetLimit(openers)
	for _, c := range controls {
		looking.Go(func() error {
			var b [1]byte
			// With a deadline in the past, Read would not try.
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := c.Read(b[:]); err != nil && !timedOut(err) {
				n.Add(1)
			}
			return nil
		})
	}
	_ = looking.Wait()
	return int(n.Load())
}

func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (l *udpLoad) close() {
	for _, f := range l.flows {
		if f != nil {
			f.close()
		}
	}
}

// percent returns part in percent of whole, or 0 if whole is.
func percent(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole) * 100
}
