package e2e

import (
	"testing"
	"time"

	"wmproxy/internal/netlab"
)

// busy is a lab with a call and two downloads in it.
type busy struct {
	*lab
	call      *call
	downloads []*download
}

// startBusy starts a lab with everything that runs in it.
func startBusy(t *testing.T, args ...string) *busy {
	t.Helper()
	l := startLab(t, netlab.Config{}, args...)
	l.rest()
	b := &busy{lab: l, call: l.startCall(voice)}
	b.downloads = []*download{l.startHTTP3Download(), l.startTCPDownload()}
	for _, d := range b.downloads {
		d.started()
	}
	b.call.flowing(patience)
	during(time.Second)
	return b
}

// finish ends it all and checks that it was whole and that nothing is left over.
func (b *busy) finish() {
	b.t.Helper()
	for _, d := range b.downloads {
		b.t.Log(d.Finish())
	}
	b.call.Stop()
	b.settles()
}

// uninterrupted checks what was sent in a time when nothing was wrong.
func (c *call) uninterrupted(what string, from, to time.Duration) {
	c.t.Helper()
	f := c.between(from, to)
	c.t.Logf("%s: %v", what, f)
	if f.Lost > f.Sent/100 || f.Sent < int((to-from)/c.rhythm.Every)*8/10 {
		c.t.Errorf("%s: %v", what, f)
	}
}

func TestInTheLabAPauseOfTheRadioKillsNothing(t *testing.T) {
	t.Parallel()
	const outage = 5 * time.Second
	b := startBusy(t)
	before := b.call.now()
	b.call.uninterrupted("before", before-time.Second, before)

	b.Cut()
	cut := b.call.now()
	during(outage)
	b.Mend()
	b.call.flowing(patience)
	during(2 * time.Second)
	end := b.call.now()
	b.call.uninterrupted("after", end-time.Second, end-300*time.Millisecond)
	f := b.call.between(cut-200*time.Millisecond, end)
	t.Logf("after %v of silence: %v; %s", outage, f, b.call.kept())
	if f.Gap < outage-200*time.Millisecond || f.Gap > outage+time.Second {
		t.Errorf("the gap is %v for a pause of %v", f.Gap, outage)
	}
	if f.Twice > 0 {
		t.Errorf("%d datagrams came twice", f.Twice)
	}
	b.finish()
}

// udpRate is how many UDP packets a second pass the router on their way up, over d.
func (l *lab) udpRate(d time.Duration) float64 {
	l.t.Helper()
	passed := func() int { c := l.Counts(netlab.Up, netlab.UDP); return c.Seen - c.Dropped }
	before, began := passed(), time.Now()
	during(d)
	return float64(passed()-before) / time.Since(began).Seconds()
}

// movesBack waits until the call's datagrams travel over UDP again, and checks that
// they stay there for a while.
func (l *lab) movesBack(c *call, within time.Duration) (took time.Duration) {
	l.t.Helper()
	full := 0.8 / c.rhythm.Every.Seconds()
	began := time.Now()
	for l.udpRate(500*time.Millisecond) < full {
		if took = time.Since(began); took > within {
			l.t.Fatalf("datagrams are not back on UDP after %v", took)
		}
	}
	took = time.Since(began)
	for range 4 {
		if rate := l.udpRate(time.Second); rate < full {
			l.t.Errorf("datagrams do not stay on UDP: %.0f packets/s", rate)
		}
	}
	return took
}

// movesWithin is the longest that datagrams may stay on a path that has died.
const movesWithin = 3 * time.Second

func TestInTheLabDatagramsLeaveUDPWhenItIsSwallowedAndComeBack(t *testing.T) {
	t.Parallel()
	b := startBusy(t)
	for range 2 { // that it came back once is not held against it
		b.Drop(netlab.Both, netlab.UDP, netlab.All)
		blocked := b.call.now()
		b.call.flowing(patience)
		during(2 * time.Second)
		moved := b.call.now()
		b.call.uninterrupted("over yamux", moved-1500*time.Millisecond, moved-300*time.Millisecond)
		f := b.call.between(blocked-200*time.Millisecond, moved)
		t.Logf("UDP swallowed: %v", f)
		if f.Gap > movesWithin {
			t.Errorf("the gap is %v", f.Gap)
		}

		b.Mend()
		mended := b.call.now()
		took := b.movesBack(b.call, patience)
		back := b.call.between(mended, b.call.now())
		t.Logf("UDP works again: back on it after %v; %v", took.Round(100*time.Millisecond), back)
		if back.Gap > 200*time.Millisecond || back.Lost > 2 {
			t.Errorf("the way back costs %v", back)
		}
	}
	t.Log(b.call.kept())
	b.finish()
}
