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

	"golang.org/x/sync/errgroup"

	"wmproxy/internal/udpio"
)

// UDPConfig is a load of datagrams. Exactly one of Window and Rate is set.
type UDPConfig struct {
	Common
	Associations int
	Window       int // datagrams in flight on each association
	Rate         int // datagrams per second on all associations together
	Size         int // bytes of payload, MinSize to MaxSize
}

// UDPResult is what became of it.
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
	Lost      int64   `json:"lost"` // not back within the timeout; Late ones included
	Late      int64   `json:"late"`
	Reordered int64   `json:"reordered"`
	Duplicate int64   `json:"duplicates"`
	Alien     int64   `json:"unexpected"` // datagrams that are none of ours, or of the wrong size
	Unsent    int64   `json:"unsent"`     // this machine had no room for them
	Skipped   int64   `json:"skipped"`    // not sent because the sender was held up
	Ended     int     `json:"associations_ended"`

	LossPercent   float64 `json:"loss_percent"`
	CPUPerMillion float64 `json:"cpu_seconds_per_million,omitempty"`

	RTT    RTT     `json:"rtt"`
	Series []Point `json:"series"`
}

const (
	// openers is how many associations are opened at once.
	openers = 16
	// knocks and knockWait are how often and how long the target is asked to
	// answer before the load begins.
	knocks    = 20
	knockWait = 250 * time.Millisecond
	// rateBatch is the most that is handed to the system at once.
	rateBatch = 64
	// drainStep is how often the end looks whether all have come back.
	drainStep = 5 * time.Millisecond
	// interruptedPatience bounds the wait for what is outstanding after Ctrl-C.
	interruptedPatience = time.Second
	// points is how many intervals a run has.
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

// UDP runs a load of datagrams. The end of ctx is no error: the result is then
// what was measured until there.
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
	places := min(max(l.cfg.Window, 1), MaxWindow)
	if l.cfg.Window > 0 {
		f.slots = make([]slot, places)
	} else {
		places = rateBatch
	}
	for range places {
		f.heads = append(append(f.heads, l.header...), make([]byte, MinSize)...)
	}
	l.flows[i] = f
	var control *net.TCPConn
	relay := l.cfg.direct
	if l.cfg.Socks != "" {
		if control, relay, err = associate(ctx, &l.cfg.Way); err != nil {
			return err
		}
	}
	cfg := udpio.Config{NoOffload: !l.cfg.Offload, ReadBuffer: socketBuffer, WriteBuffer: socketBuffer}
	if err := f.open(&l.cfg.Way, control, relay, cfg); err != nil {
		return err
	}
	l.unprimed.Add(1)
	f.socket.Start(f.receive)
	return nil
}

// errNoAnswer is a target that did not echo.
var errNoAnswer = errors.New("the target does not answer")

// prime knocks until all flows have been answered.
func (l *udpLoad) prime(ctx context.Context) error {
	answered := make(chan struct{})
	var waiter sync.WaitGroup
	waiter.Go(func() { l.unprimed.Wait(); close(answered) })
	defer waiter.Wait()
	retry := time.NewTicker(knockWait)
	defer retry.Stop()
	for range knocks {
		for _, f := range l.flows {
			f.knock()
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

// giveUp counts the unanswered and ends the wait for them.
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

// measure runs the load for its time.
func (l *udpLoad) measure(ctx context.Context) (UDPResult, error) {
	m, err := newMeter(l.cfg.PIDs)
	if err != nil {
		return UDPResult{}, err
	}
	running, stop := context.WithTimeout(ctx, l.cfg.Duration)
	defer stop()
	var senders sync.WaitGroup
	l.sending.Store(true)
	begin := l.now()
	if l.cfg.Rate > 0 {
		senders.Go(func() { l.sendRate(running, begin) })
	} else {
		senders.Go(func() { l.keepWindow(running) })
	}
	l.watch(running)
	o := l.cfg.outcome("udp")
	o.Seconds = float64(l.now()-begin) / 1e9
	atEnd := l.total()
	err = m.read(&o)
	l.sending.Store(false)
	senders.Wait()
	if err == nil {
		err = l.err()
	}
	if err != nil {
		return UDPResult{}, err
	}
	// The deadline of running is the regular end.
	patience := l.cfg.timeout()
	if o.Interrupted = ctx.Err() != nil; o.Interrupted {
		patience = min(patience, interruptedPatience)
	}
	l.drain(patience)
	return l.result(o, atEnd), nil
}

// keepWindow fills the windows and replaces what is lost.
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

// sendRate sends at the rate, one association after the other.
func (l *udpLoad) sendRate(ctx context.Context, begin int64) {
	s := newSleeper()
	defer s.close()
	p := pace{rate: int64(l.cfg.Rate)}
	turn := 0
	for ctx.Err() == nil {
		n := p.due(l.now() - begin)
		each, rest := n/len(l.flows), n%len(l.flows)
		for i := range min(n, len(l.flows)) {
			count := each
			if i < rest {
				count++
			}
			l.flows[turn].send(count, l.now())
			turn = (turn + 1) % len(l.flows)
		}
		// After a whole round and a part, the next one begins behind the part.
		if each > 0 {
			turn = (turn + rest) % len(l.flows)
		}
		l.skipped.Store(p.skipped)
		now := l.now() - begin
		s.sleep(p.next(now) - now)
	}
}

// watch shows how it goes until ctx ends.
func (l *udpLoad) watch(ctx context.Context) {
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
				c := l.total()
				return fmt.Sprintf("%s of %s · %s round trips/s · RTT p50 %s p99 %s · %s outstanding",
					time.Since(line.began).Round(100*time.Millisecond), l.cfg.Duration,
					grouped(int64(float64(p.RoundTrips)/interval.Seconds())), microseconds(p.P50), microseconds(p.P99), grouped(c.lost()))
			})
		case <-ctx.Done():
			return
		}
	}
}

// drain waits until nothing is outstanding, or what is has to count as lost.
func (l *udpLoad) drain(patience time.Duration) {
	step := time.NewTicker(drainStep)
	defer step.Stop()
	lost := time.NewTimer(patience)
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

// ended counts the associations that the server has ended.
func (l *udpLoad) ended() int {
	var controls []*net.TCPConn
	for _, f := range l.flows {
		if f.control != nil {
			controls = append(controls, f.control)
		}
	}
	return hungUp(controls)
}

// hungUp counts the connections that the other side has closed; it has nothing
// to say on them.
func hungUp(controls []*net.TCPConn) int {
	var n atomic.Int64
	var looking errgroup.Group
	looking.SetLimit(openers)
	for _, c := range controls {
		looking.Go(func() error {
			var b [1]byte
			// A deadline in the past would not even look.
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

// percent is part of whole, 0 of nothing.
func percent(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole) * 100
}
