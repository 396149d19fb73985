package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
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

// startBusy starts a lab with a call and downloads.
func startBusy(t *testing.T, downloads ...func(*lab) *download) *busy {
	t.Helper()
	return startBusyIn(startLab(t, netlab.Config{}), downloads...)
}

// startBusyIn starts a call and downloads in a lab.
func startBusyIn(l *lab, downloads ...func(*lab) *download) *busy {
	l.t.Helper()
	l.rest()
	b := &busy{lab: l, call: l.startCall(voice)}
	for _, start := range downloads {
		b.downloads = append(b.downloads, start(l))
	}
	for _, d := range b.downloads {
		d.started()
	}
	b.call.flowing(waitTimeout)
	during(time.Second)
	return b
}

// finish ends the call and the downloads and checks that these were complete and that nothing remains.
func (b *busy) finish() {
	b.t.Helper()
	for _, d := range b.downloads {
		b.t.Log(d.Finish())
	}
	b.call.Stop()
	b.settles()
}

// uninterrupted checks the datagrams sent in a time without a fault. One or two may be lost if
// several labs share a machine.
func (c *call) uninterrupted(what string, from, to time.Duration) {
	c.t.Helper()
	f := c.between(from, to)
	c.t.Logf("%s: %v", what, f)
	if f.Lost > max(2, f.Sent/100) || f.Sent < int((to-from)/c.rhythm.Every)*8/10 {
		c.fault(f, "%s: too many are lost", what)
	}
}

func TestInTheLabStreamsSurviveRadioPause(t *testing.T) {
	t.Parallel()
	const outage = 5 * time.Second
	b := startBusy(t, (*lab).startHTTP3Download, (*lab).startTCPDownload)
	before := b.call.now()
	b.call.uninterrupted("before", before-time.Second, before)

	b.Cut()
	cut := b.call.now()
	during(outage)
	b.Mend()
	b.call.flowing(waitTimeout)
	b.call.recovers("after")
	end := b.call.now()
	f := b.call.between(cut-200*time.Millisecond, end)
	t.Logf("after %v of silence: %v; %s", outage, f, b.call.kept())
	if f.Gap < outage-200*time.Millisecond || f.Gap > outage+time.Second {
		b.call.fault(f, "the gap of a pause of %v", outage)
	}
	if f.Twice > 0 {
		t.Errorf("%d datagrams came twice", f.Twice)
	}
	b.finish()
}

// recovers waits until a call has been undisturbed for a while after a fault.
func (c *call) recovers(what string) {
	c.t.Helper()
	const window, onItsWay = 700 * time.Millisecond, 300 * time.Millisecond
	for began := c.now(); ; {
		during(window + onItsWay)
		to := c.now() - onItsWay
		f := c.between(to-window, to)
		if f.Lost <= 2 {
			c.t.Logf("%s: %v", what, f)
			return
		}
		if c.now()-began > 5*time.Second {
			c.fault(f, "%s: too many are lost", what)
			return
		}
	}
}

// traffic returns the packets per second that go up through the router during d.
func (l *lab) traffic(d time.Duration) (udp, tcp float64) {
	l.t.Helper()
	began := time.Now()
	beforeUDP, beforeTCP := l.Counts(netlab.Up, netlab.UDP).Seen, l.Counts(netlab.Up, netlab.TCP).Seen
	during(d)
	afterUDP, afterTCP := l.Counts(netlab.Up, netlab.UDP).Seen, l.Counts(netlab.Up, netlab.TCP).Seen
	took := time.Since(began).Seconds()
	return float64(afterUDP-beforeUDP) / took, float64(afterTCP-beforeTCP) / took
}

// overUDP reports whether datagrams travel over UDP during d. There must be no other traffic
// but idle streams and probes. The number of packets depends on how busy the machine is, so
// only the ratio counts.
func (l *lab) overUDP(d time.Duration) (bool, string) {
	l.t.Helper()
	udp, tcp := l.traffic(d)
	return udp > 20 && udp > 3*tcp, fmt.Sprintf("%.0f packets/s over UDP, %.0f over TCP", udp, tcp)
}

// movesBack waits until datagrams travel over UDP, and checks that they continue to for a
// while.
func (l *lab) movesBack(within time.Duration) (took time.Duration) {
	l.t.Helper()
	began := time.Now()
	for {
		back, traffic := l.overUDP(500 * time.Millisecond)
		took = time.Since(began)
		if back {
			break
		}
		if took > within {
			l.t.Fatalf("datagrams are not back on UDP after %v: %s", took, traffic)
		}
	}
	l.staysOnUDP(4 * time.Second)
	return took
}

// staysOnUDP checks that datagrams travel over UDP for d.
func (l *lab) staysOnUDP(d time.Duration) {
	l.t.Helper()
	for range d / time.Second {
		if is, traffic := l.overUDP(time.Second); !is {
			l.t.Errorf("datagrams do not stay on UDP: %s", traffic)
		}
	}
}

// movesWithin bounds the time that datagrams stay on a dead path.
const movesWithin = 3 * time.Second

// moves waits until a call continues after its path has died, and checks that it did not take
// too long, and that the new path works.
func (c *call) moves(what string, died time.Duration) {
	c.t.Helper()
	c.flowing(waitTimeout)
	c.recovers(what + ", moved")
	f := c.between(died-200*time.Millisecond, c.now())
	c.t.Logf("%s: %v", what, f)
	if f.Gap > movesWithin {
		c.fault(f, "%s: the gap is more than %v", what, movesWithin)
	}
	if f.Twice > 0 {
		c.t.Errorf("%s: %d datagrams came twice", what, f.Twice)
	}
}

func TestInTheLabDatagramsLeaveDroppedUDPAndReturn(t *testing.T) {
	t.Parallel()
	b := startBusy(t, (*lab).startHTTP3Download)
	for range 2 { // it may come back once
		b.Drop(netlab.Both, netlab.UDP, netlab.All)
		b.call.moves("UDP swallowed", b.call.now())

		b.Mend()
		mended := b.call.now()
		took := b.movesBack(waitTimeout)
		back := b.call.between(mended, b.call.now())
		t.Logf("UDP works again: back on it after %v; %v", took.Round(100*time.Millisecond), back)
		if back.Gap > 400*time.Millisecond || back.Lost > 2 {
			b.call.fault(back, "the way back is felt")
		}
	}
	t.Log(b.call.kept())
	b.finish()
}

// Both carriers end, by errors and by resets, and new ones cannot be made for a while.
func TestInTheLabAssociationsSurviveBothCarriers(t *testing.T) {
	t.Parallel()
	const outage = 10 * time.Second
	b := startBusy(t, (*lab).startHTTP3Download)
	old := b.connect(b.echo)

	b.Unplug(b.Home)
	cut := b.call.now()
	b.ForgetNAT()
	during(outage)
	b.Plug(b.Home)
	plugged := b.call.now()
	b.call.flowing(waitTimeout)
	b.call.recovers("after")
	end := b.call.now()
	f := b.call.between(cut-200*time.Millisecond, end)
	t.Logf("the link was down for %v: %v; %s", plugged-cut, f, b.call.kept())
	if f.Gap < outage-200*time.Millisecond || f.Gap > outage+5*time.Second {
		b.call.fault(f, "the gap of an outage of %v", outage)
	}
	endsAbruptly(t, old)
	t.Logf("a stream passes after %v", b.connects(5*time.Second).Round(time.Millisecond))
	b.finish()
}

// endsAbruptly checks that a stream ends with an error after its carrier died.
func endsAbruptly(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	began := time.Now()
	if err := conn.SetReadDeadline(began.Add(waitTimeout)); err != nil {
		t.Fatal(err)
	}
	_, err := conn.Read(make([]byte, 1))
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a stream of a dead carrier ends with %v", err)
	}
	t.Logf("the old stream ends %v later: %v", time.Since(began).Round(time.Millisecond), err)
}

func TestInTheLabStreamsUseQUICWhenTCPIsDropped(t *testing.T) {
	t.Parallel()
	b := startBusy(t, (*lab).startHTTP3Download)
	old := b.connect(b.echo)
	b.Drop(netlab.Both, netlab.TCP, netlab.All)
	blocked := b.call.now()
	hasty := b.opening()
	t.Logf("a stream passes %v after TCP was swallowed", b.connects(movesWithin+time.Second).Round(time.Millisecond))
	for range 5 {
		b.connects(time.Second)
	}
	t.Logf("one that was asked for before anybody could know: %s", <-hasty)
	endsAbruptly(t, old)
	b.call.uninterrupted("datagrams meanwhile", blocked, b.call.now()-300*time.Millisecond)

	b.Mend()
	began := time.Now()
	for { // until only a stream uses TCP
		before := b.Counts(netlab.Up, netlab.TCP).Seen
		for range 10 {
			b.connects(time.Second)
		}
		if b.Counts(netlab.Up, netlab.TCP).Seen >= before+20 {
			break
		}
		if time.Since(began) > waitTimeout {
			t.Fatal("streams do not come back to TCP")
		}
		during(100 * time.Millisecond)
	}
	t.Logf("streams are back on TCP %v after it works again; %s", time.Since(began).Round(time.Millisecond), b.call.kept())
	b.finish()
}

// opening opens a stream and sends the outcome later.
func (l *lab) opening() <-chan string {
	said := make(chan string, 1)
	began := time.Now()
	go func() {
		ctx, cancel := context.WithTimeout(l.t.Context(), 2*waitTimeout)
		defer cancel()
		err := l.Home.In(func() error { return connectOnce(ctx, l.client.Socks(), l.echo, func() {}) })
		if took := time.Since(began); took > waitTimeout {
			l.t.Errorf("a stream hangs for %v: %v", took, err)
		}
		said <- fmt.Sprintf("%v after %v", err, time.Since(began).Round(time.Millisecond))
	}()
	return said
}

// The client dials both transports concurrently, so that blocked UDP delays no start.
func TestInTheLabBlockedUDPDelaysNoStart(t *testing.T) {
	t.Parallel()
	took := map[string]time.Duration{}
	for _, network := range []string{"open", "UDP swallowed", "TCP swallowed"} {
		l := startLabServer(t, netlab.Config{})
		switch network {
		case "UDP swallowed":
			l.Drop(netlab.Both, netlab.UDP, netlab.All)
		case "TCP swallowed":
			l.Drop(netlab.Both, netlab.TCP, netlab.All)
		}
		began := time.Now()
		l.startClient()
		c := l.startCall(voice)
		c.flowing(waitTimeout)
		stream := l.connects(time.Second)
		c.Stop()
		took[network] = c.began.Sub(began) + c.firstBack()
		t.Logf("%s: the first datagram is back %v after the client's start, a stream takes %v",
			network, took[network].Round(time.Millisecond), stream.Round(time.Millisecond))
		if took[network] > took["open"]+2*time.Second { // far less than the timeout of a dial
			t.Errorf("%s: %v, with an open network %v", network, took[network], took["open"])
		}
		l.client.Stop()
		l.servers[0].Stop()
	}
}

// As with a tunnel on the way that takes less than 1,500 bytes, and filtered ICMP. The call's
// own datagrams are small and pass, except for those that share a packet with a large one.
func TestInTheLabPathWithoutLargePacketsIsLeft(t *testing.T) {
	t.Parallel()
	b := startBusy(t)
	large := b.startCall(rhythm{Every: voice.Every, Size: 1350})
	large.flowing(waitTimeout)
	for _, direction := range netlab.Both {
		b.Drop([]netlab.Direction{direction}, netlab.UDP, netlab.Above(1300))
		died := b.call.now()
		large.moves(fmt.Sprintf("large packets swallowed on the way %v", direction), large.now())
		small := b.call.between(died, b.call.now()-300*time.Millisecond)
		t.Logf("small ones meanwhile: %v", small)
		if small.Lost > small.Sent/4 || small.Twice > 0 {
			b.call.fault(small, "small ones are lost meanwhile")
		}
		b.Mend()
		t.Logf("back on UDP %v after large ones pass again", b.movesBack(waitTimeout).Round(100*time.Millisecond))
	}
	t.Log(large.kept())
	large.Stop()
	b.finish()
}

func TestInTheLabPathWithMostPacketsLostIsLeft(t *testing.T) {
	t.Parallel()
	for _, direction := range netlab.Both {
		t.Run(direction.String(), func(t *testing.T) {
			t.Parallel()
			b := startBusy(t)
			b.Drop([]netlab.Direction{direction}, netlab.UDP, netlab.Share(0.75)) // with little more than half it may take longer
			from := b.call.now()
			during(movesWithin + 2*time.Second)
			t.Logf("75 %% lost %v: %v", direction, b.call.between(from, from+movesWithin))
			b.call.uninterrupted("moved", from+movesWithin, b.call.now()-300*time.Millisecond)
			b.Mend()
			t.Logf("back on UDP %v after it works again; %s", b.movesBack(waitTimeout).Round(100*time.Millisecond), b.call.kept())
			b.finish()
		})
	}
}

func TestInTheLabPathWithTenPercentLossIsKept(t *testing.T) {
	t.Parallel()
	b := startBusy(t)
	b.Drop(netlab.Both, netlab.UDP, netlab.Share(0.1))
	from := b.call.now()
	b.staysOnUDP(10 * time.Second)
	f := b.call.between(from, b.call.now()-300*time.Millisecond)
	t.Logf("10 %% lost either way: %v; %s", f, b.call.kept())
	if f.Lost < f.Sent/10 || f.Lost > f.Sent*3/10 {
		t.Errorf("of %d datagrams %d are lost", f.Sent, f.Lost)
	}
	b.Mend()
	b.finish()
}

func TestInTheLabCallSurvivesNewAddress(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		event func(b *busy, turn int)
	}{
		{"the NAT forgets", func(b *busy, _ int) { b.ForgetNAT() }},
		{"home has another address", func(b *busy, turn int) { b.Move(byte(10 + turn)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := startBusy(t, (*lab).startHTTP3Download)
			for turn := range 2 {
				happened := b.call.now()
				test.event(b, turn)
				b.call.moves(test.name, happened)
				t.Logf("a stream passes after %v", b.connects(5*time.Second).Round(time.Millisecond))
			}
			t.Logf("%s; on UDP after %v", b.call.kept(), b.movesBack(waitTimeout).Round(100*time.Millisecond))
			b.finish()
		})
	}
}

func TestInTheLabCallsSurvivePausedServer(t *testing.T) {
	t.Parallel()
	const outage = 5 * time.Second
	b := startBusy(t, (*lab).startHTTP3Download, (*lab).startTCPDownload)
	paused := b.call.now()
	signal(t, b.servers[0].process, syscall.SIGSTOP)
	during(outage)
	signal(t, b.servers[0].process, syscall.SIGCONT)
	b.call.flowing(waitTimeout)
	b.call.recovers("after")
	end := b.call.now()
	f := b.call.between(paused-200*time.Millisecond, end)
	t.Logf("the server was paused for %v: %v; %s", outage, f, b.call.kept())
	if f.Gap < outage-200*time.Millisecond || f.Gap > outage+time.Second {
		b.call.fault(f, "the gap of a pause of %v", outage)
	}
	b.finish()
}

func signal(t *testing.T, p *process, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func TestInTheLabCallsSurviveKilledServer(t *testing.T) {
	t.Parallel()
	b := startBusy(t)
	old := b.connect(b.echo)
	killed := b.call.now()
	b.servers[0].Kill()
	during(time.Second)
	b.startServer(0)
	started := b.call.now()
	b.call.flowing(waitTimeout)
	b.call.recovers("after")
	end := b.call.now()
	f := b.call.between(killed-200*time.Millisecond, end)
	egress := b.call.seenAs()
	t.Logf("the server was away for %v: %v; egress %v", (started - killed).Round(time.Millisecond), f, egress)
	if f.Gap > started-killed+5*time.Second {
		t.Errorf("the gap is %v, the server was away for %v", f.Gap, started-killed)
	}
	if len(egress) != 2 {
		t.Errorf("egress %v, want one before and one after", egress)
	}
	endsAbruptly(t, old)
	t.Logf("a stream passes after %v", b.connects(5*time.Second).Round(time.Millisecond))
	b.finish()
}

// leavesFromTheFirst waits until new associations leave from the first server, and returns the
// time that it took.
func (l *lab) leavesFromTheFirst() time.Duration {
	l.t.Helper()
	began := time.Now()
	for {
		c := l.startCall(voice)
		c.flowing(waitTimeout)
		at := c.seenAs()
		c.Stop()
		took := time.Since(began)
		if len(at) == 1 && at[0].Addr() == netlab.ServerAddr(0) {
			return took
		}
		if took > 2*waitTimeout {
			l.t.Fatalf("new associations leave from %v and not from the first server", at)
		}
	}
}

// The application keeps its association, which gets another address. New associations return
// to the first server, and open ones stay.
func TestInTheLabCallsMoveToAnotherServer(t *testing.T) {
	t.Parallel()
	l := startLab(t, netlab.Config{Servers: 2})
	t.Logf("associations leave from the first server %v after the client's start", l.leavesFromTheFirst().Round(100*time.Millisecond))
	b := startBusyIn(l, (*lab).startHTTP3Download)
	killed := b.call.now()
	b.servers[0].Kill()
	b.call.flowing(waitTimeout)
	b.call.recovers("after")
	end := b.call.now()
	f := b.call.between(killed-200*time.Millisecond, end)
	t.Logf("the first server is gone: %v; a stream passes after %v", f, b.connects(5*time.Second).Round(time.Millisecond))
	if f.Gap > 6*time.Second {
		b.call.fault(f, "the gap")
	}

	b.startServer(0)
	t.Logf("new associations leave from the first server again %v after its start", b.leavesFromTheFirst().Round(100*time.Millisecond))
	during(2 * time.Second)
	egress := b.call.seenAs()
	if len(egress) != 2 || egress[0].Addr() != netlab.ServerAddr(0) || egress[1].Addr() != netlab.ServerAddr(1) {
		t.Errorf("the call was seen at %v, want one address of each server", egress)
	}
	t.Logf("the call was seen at %v", egress)
	b.finish()
}
