package health

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"wmproxy/tunnel/wire"
)

// course is a carrier's health under traffic and pings on a simulated path.
type course struct {
	h        *Health
	now      time.Duration
	rtt      time.Duration
	up, down func(size int) bool // whether a bundle arrives
	traffic  func(now time.Duration) (bundles, size int)
	inUse    bool

	sent, peerReceived, peerSent, received wire.Counts
	pings                                  int
	next                                   time.Duration
	answers                                []answer
}

type answer struct {
	at   time.Duration
	p    wire.Probe
	size int
}

func all(int) bool  { return true }
func none(int) bool { return false }

// losing loses that share at random.
func losing(share float64) func(int) bool {
	dice := rand.New(rand.NewPCG(7, 11))
	return func(int) bool { return dice.Float64() >= share }
}

func eating(above int) func(int) bool { return func(size int) bool { return size <= above } }

func newCourse() *course {
	return &course{
		h: New(Timers{}.WithDefaults(), 0), rtt: 50 * time.Millisecond, up: all, down: all, inUse: true,
		traffic: func(time.Duration) (int, int) { return 1, 200 },
	}
}

const courseStep = 20 * time.Millisecond

// run goes on for d, or until the state changes; it returns how long that took.
func (c *course) run(d time.Duration) (took time.Duration, changed bool) {
	for end := c.now + d; c.now < end; c.now += courseStep {
		if n, size := c.traffic(c.now); c.inUse {
			for range n {
				c.send(size)
				c.reply(size)
			}
		}
		if c.now >= c.next {
			c.ping()
		}
		for len(c.answers) > 0 && c.answers[0].at <= c.now {
			a := c.answers[0]
			c.answers = c.answers[1:]
			a.p.Sent = c.peerSent
			if c.reply(a.size) {
				received := c.received
				c.h.Answer(c.now, &a.p, received)
			}
		}
		if c.h.Judge(c.now) {
			return d - (end - c.now), true
		}
		c.next = c.h.LastAsked() + c.h.Interval(c.now, c.inUse)
	}
	return d, false
}

func (c *course) send(size int) bool {
	count(&c.sent, size)
	if !c.up(size) {
		return false
	}
	count(&c.peerReceived, size)
	return true
}

func (c *course) reply(size int) bool {
	count(&c.peerSent, size)
	if !c.down(size) {
		return false
	}
	count(&c.received, size)
	return true
}

func (c *course) ping() {
	c.pings++
	id := c.h.Ask(c.now)
	size := 60
	if c.h.Full(id, c.inUse) {
		size = 1415
	}
	c.h.Sent(id, c.sent)
	heard := c.peerReceived
	if c.send(size) {
		c.answers = append(c.answers, answer{c.now + c.rtt, wire.Probe{Pong: true, ID: id, Received: heard}, size})
	}
}

func TestFailedBusyPathIsSuspectIn3Seconds(t *testing.T) {
	for _, test := range []struct {
		name, why string
		up, down  func(int) bool
		traffic   int // size of what is sent, in bytes
	}{
		{"silent", "silent for", none, none, 200},
		{"nothing gets there", "silent for", none, all, 200},
		{"nothing comes back", "silent for", all, none, 200},
		{"loses 70 % on the way there", "on the way there", losing(0.7), all, 200},
		{"loses 70 % on the way back", "on the way back", all, losing(0.7), 200},
		{"eats all above 1,250 bytes", "loses all above", eating(1250), all, 1380},
		{"eats all above 1,250 bytes on the way back", "loses all above", all, eating(1250), 1380},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCourse()
			if took, changed := c.run(20 * time.Second); changed {
				t.Fatalf("a sound path was suspect after %v: %s", took, c.h.why)
			}
			c.up, c.down = test.up, test.down
			n := 0
			c.traffic = func(time.Duration) (int, int) { // small and large in turn
				if n++; n%2 == 0 {
					return 1, 200
				}
				return 1, test.traffic
			}
			took, changed := c.run(10 * time.Second)
			if !changed || took > 3*time.Second || !strings.Contains(c.h.why, test.why) {
				t.Errorf("suspect: %v after %v, %q; want %q within 3 s", changed, took, c.h.why, test.why)
			}
			t.Logf("after %v: %s", took, c.h.why)
		})
	}
}

func TestFailedIdlePathIsSuspectIn20Seconds(t *testing.T) {
	c := newCourse()
	c.inUse = false
	if took, changed := c.run(10 * time.Minute); changed {
		t.Fatalf("a sound path was suspect after %v: %s", took, c.h.why)
	}
	if most := int(10*time.Minute/idleProbe) + 1; c.pings > most {
		t.Errorf("%d pings in ten idle minutes, want at most %d", c.pings, most)
	}
	c.up = none
	if took, changed := c.run(time.Minute); !changed || took > 20*time.Second {
		t.Errorf("suspect: %v after %v", changed, took)
	}
}

func TestOrdinaryLossIsNoReasonToLeave(t *testing.T) {
	for _, share := range []float64{0.01, 0.1, 0.25} {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			c := newCourse()
			c.up, c.down = losing(share), losing(share)
			if took, changed := c.run(time.Hour); changed {
				t.Errorf("suspect after %v: %s", took, c.h.why)
			}
		})
	}
}

func TestASuspectReturnsWhenItHasBeenSteady(t *testing.T) {
	c := newCourse()
	c.run(10 * time.Second)
	c.up = none
	c.run(10 * time.Second)
	c.inUse = false // its datagrams have left
	if took, changed := c.run(20 * time.Second); changed {
		t.Fatalf("a silent suspect returned after %v", took)
	}
	c.up = all
	took, changed := c.run(time.Minute)
	if !changed || took < 4*time.Second || took > 6*time.Second {
		t.Errorf("returned: %v after %v, want about 5 s", changed, took)
	}
}

// A path that is good for a while and then bad, again and again, is tried less
// and less often.
func TestEachRelapseDoublesTheWait(t *testing.T) {
	c := newCourse()
	var waits []time.Duration
	for range 6 {
		c.up, c.inUse = none, true
		if _, changed := c.run(10 * time.Second); !changed {
			t.Fatal("a silent path is not suspect")
		}
		c.up, c.inUse = all, false
		took, changed := c.run(2 * time.Minute)
		if !changed {
			t.Fatalf("after waits of %v it never returned", waits)
		}
		waits = append(waits, took)
		c.run(3 * time.Second)
	}
	for i := 1; i < 4; i++ {
		if ratio := float64(waits[i]) / float64(waits[i-1]); ratio < 1.7 || ratio > 2.3 {
			t.Errorf("waits %v: not doubled", waits)
		}
	}
	if last := waits[len(waits)-1]; last > maxSteady+5*time.Second {
		t.Errorf("the last wait is %v, want at most about %v", last, maxSteady)
	}
}

func TestSuspectWithMuchLossDoesNotReturn(t *testing.T) {
	c := newCourse()
	c.up = losing(0.65)
	if _, changed := c.run(10 * time.Second); !changed {
		t.Fatal("not suspect")
	}
	c.up, c.inUse = losing(0.55), false
	if took, changed := c.run(5 * time.Minute); changed {
		t.Errorf("it returned after %v at a loss of more than half", took)
	}
}

func TestAPathThatEatsLargePacketsReturnsWhenTheyPass(t *testing.T) {
	c := newCourse()
	c.up = eating(1250)
	n := 0
	c.traffic = func(time.Duration) (int, int) {
		if n++; n%2 == 0 {
			return 1, 200
		}
		return 1, 1380
	}
	if _, changed := c.run(5 * time.Second); !changed || c.h.Limit != 1100 {
		t.Fatalf("limit %d, %s", c.h.Limit, c.h.why)
	}
	c.traffic = func(time.Duration) (int, int) { return 1, 200 }
	if took, changed := c.run(time.Minute); changed {
		t.Fatalf("returned after %v though large probes vanish", took)
	}
	c.up = all
	if took, changed := c.run(time.Minute); !changed || took > 8*time.Second || c.h.Limit != 0 {
		t.Errorf("returned: %v after %v, limit %d", changed, took, c.h.Limit)
	}
}

// Where nearly all bundles are large, losing them looks like losing most.
func TestALimitIsFoundThoughNearlyAllBundlesAreLarge(t *testing.T) {
	for _, back := range []bool{false, true} {
		c := newCourse()
		c.traffic = func(time.Duration) (int, int) { return 1, 1380 }
		c.run(10 * time.Second)
		if c.up = eating(1250); back {
			c.up, c.down = all, eating(1250)
		}
		took, changed := c.run(3 * time.Second)
		c.run(3*time.Second - took) // first it is suspect for its loss
		if !changed || c.h.Limit != 1100 {
			t.Errorf("back %v: suspect %v after %v, limit %d after 3 s, %q; want 1100", back, changed, took, c.h.Limit, c.h.why)
		}
	}
}

// One that was suspected for its silence may turn out to eat large packets.
func TestASuspectsLimitIsFoundLater(t *testing.T) {
	c := newCourse()
	c.traffic = func(time.Duration) (int, int) { return 1, 1380 }
	c.run(10 * time.Second)
	c.up = none
	if _, changed := c.run(3 * time.Second); !changed || c.h.Limit != 0 {
		t.Fatalf("suspect %v, limit %d", changed, c.h.Limit)
	}
	c.up = eating(1250)
	c.run(5 * time.Second)
	if c.h.Limit != 1100 {
		t.Errorf("limit %d while nothing above 1,250 bytes arrives, want 1100", c.h.Limit)
	}
}

func TestAfterSleepTheFirstPingDecidesSoon(t *testing.T) {
	c := newCourse()
	c.run(10 * time.Second)
	c.up = none
	c.h.Doubt()
	if took, changed := c.run(10 * time.Second); !changed || took > time.Second+courseStep {
		t.Errorf("suspect: %v after %v, want within a second", changed, took)
	}
}

func TestLateAndForgedPongsCountForNothing(t *testing.T) {
	h := New(Timers{}.WithDefaults(), 0)
	id := h.Ask(0)
	if h.Answer(time.Second, &wire.Probe{Pong: true, ID: id}, wire.Counts{}) {
		t.Error("a pong for a ping that has not left")
	}
	h.Sent(id, wire.Counts{1})
	if !h.Answer(time.Second, &wire.Probe{Pong: true, ID: id}, wire.Counts{}) || h.RTT != time.Second {
		t.Errorf("the answer was not taken, RTT %v", h.RTT)
	}
	for _, forged := range []uint64{0, id, id + 1, id + openPings, 1 << 62} {
		if h.Answer(2*time.Second, &wire.Probe{Pong: true, ID: forged}, wire.Counts{}) {
			t.Errorf("a pong of id %d was taken", forged)
		}
	}
}

func TestProbesSurviveTheWire(t *testing.T) {
	p := wire.Probe{Pong: true, ID: 7, Sent: wire.Counts{5, 4, 3, 2, 1}, Received: wire.Counts{50, 40, 30, 20, 1 << 40}, Limit: 1200, Epoch: 9, Segments: 100, Resent: 3}
	rec, rest, err := wire.ParseRecord(p.Append(nil))
	if err != nil || len(rest) != 0 || rec.Flow != 0 || rec.Padding() {
		t.Fatalf("%+v, %d bytes left, %v", rec, len(rest), err)
	}
	got, ok := wire.ParseProbe(rec.Body)
	if !ok || got != p {
		t.Errorf("%+v became %+v, %v", p, got, ok)
	}
	for i := range rec.Body {
		if _, ok := wire.ParseProbe(rec.Body[:i]); ok {
			t.Errorf("%d of %d bytes are a probe", i, len(rec.Body))
		}
	}
}

func FuzzProbe(f *testing.F) {
	ping := wire.Probe{ID: 1, Sent: wire.Counts{1}}
	pong := wire.Probe{Pong: true, ID: 1 << 60, Received: wire.Counts{1 << 61}}
	f.Add(ping.Append(nil)[2:])
	f.Add(pong.Append(nil)[2:])
	f.Fuzz(func(t *testing.T, body []byte) {
		p, ok := wire.ParseProbe(body)
		if !ok {
			return
		}
		rec, _, err := wire.ParseRecord(p.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if again, ok := wire.ParseProbe(rec.Body); !ok || again != p {
			t.Fatalf("%+v became %+v", p, again)
		}
		// Whatever a peer says, judging it must not panic, and its counters are only compared.
		h := New(Timers{}.WithDefaults(), 0)
		for i := range 5 {
			id := h.Ask(time.Duration(i) * time.Second)
			h.Sent(id, wire.Counts{uint64(i)})
			p.ID = id
			h.Answer(time.Duration(i)*time.Second, &p, wire.Counts{uint64(i)})
			h.Judge(time.Duration(i) * time.Second)
		}
	})
}

func TestATCPConnectionThatResendsLosesStreamsForAWhile(t *testing.T) {
	var l Resends
	var own Segments
	now := time.Duration(0)
	// step lets a window pass in which so many of 1,000 segments were sent again.
	step := func(resent uint64) bool {
		now += lossWindow
		own.Segments += 1000
		own.Resent += resent
		return l.Judge(now, own)
	}
	for range 10 {
		if step(15) {
			t.Fatal("1.5 % is no reason")
		}
	}
	if !step(50) || !l.Lossy {
		t.Fatal("5 % is one")
	}
	if step(40) || step(0) {
		t.Error("it has had no rest")
	}
	windows := 0
	for windows < 100 && !step(0) {
		windows++
	}
	if rest := time.Duration(windows+2) * lossWindow; l.Lossy || rest < lossRest || rest > lossRest+2*lossWindow {
		t.Errorf("rested for %v, want about %v", rest, lossRest)
	}
	l.peer = Segments{1000, 100} // the first word of a server must not count as a window
	if step(0) {
		t.Error("counters from before were taken for new ones")
	}
	l.peer = Segments{2000, 200}
	if !step(0) || !l.Lossy {
		t.Error("the server's own retransmissions do not count")
	}
}

// More pings are asked for meanwhile than are remembered.
func TestSilenceIsCountedFromTheFirstPingThatIsOpen(t *testing.T) {
	c := newCourse()
	c.run(10 * time.Second)
	c.up = none
	began := c.now
	for c.now-began < 2*time.Minute {
		c.run(time.Second)
	}
	if silent := c.h.Silence(c.now); silent < c.now-began-time.Second || silent > c.now-began+time.Second {
		t.Errorf("silent for %v, want %v", silent, c.now-began)
	}
	c.up = all
	c.run(2 * time.Second)
	if silent := c.h.Silence(c.now); silent > 2*c.rtt {
		t.Errorf("silent for %v once pings are answered again", silent)
	}
}

func TestAPauseThatTCPMakesUpForIsNoProof(t *testing.T) {
	h := New(Timers{}.WithDefaults(), 0)
	var c wire.Counts
	var open []wire.Probe
	var suspectAt, goodAt time.Duration
	const from, to = 3 * time.Second, 11 * time.Second
	for now := time.Duration(0); now < 20*time.Second; now += courseStep {
		if now-h.LastAsked() >= h.Interval(now, true) {
			id := h.Ask(now)
			h.Sent(id, c)
			open = append(open, wire.Probe{Pong: true, ID: id, Sent: c, Received: c})
			count(&c, 60)
		}
		if now <= from || now >= to { // what stood still then arrives, late and whole
			for _, p := range open {
				h.Answer(now, &p, p.Sent)
			}
			open = nil
		}
		if h.Judge(now) && h.Suspect {
			suspectAt = now
		} else if suspectAt > 0 && !h.Suspect && goodAt == 0 {
			goodAt = now
		}
	}
	if suspectAt == 0 || goodAt < to+h.t.Steady {
		t.Errorf("suspect at %v, good at %v, want at %v or later", suspectAt, goodAt, to+h.t.Steady)
	}
}

// count counts one bundle of n bytes.
func count(c *wire.Counts, n int) {
	c[0]++
	for i, size := range wire.SizeClasses {
		if n <= size {
			return
		}
		c[i+1]++
	}
}

func TestIdleCarrierIsAskedThriceWithinDead(t *testing.T) {
	for _, dead := range []time.Duration{3 * time.Second, 10 * time.Second, 30 * time.Second} {
		h := New(Timers{Dead: dead}.WithDefaults(), 0)
		h.Ask(0)
		h.Sent(1, wire.Counts{})
		h.Answer(time.Millisecond, &wire.Probe{Pong: true, ID: 1}, wire.Counts{})
		if every := h.Interval(time.Second, false); 3*every > dead {
			t.Errorf("it is asked every %v, and ends after %v", every, dead)
		}
	}
}
