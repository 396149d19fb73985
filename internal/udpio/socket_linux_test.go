package udpio

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"wmproxy/internal/testmain"
)

func open(t testing.TB, cfg Config) *Socket {
	t.Helper()
	if cfg.ReadBuffer == 0 {
		cfg.ReadBuffer = 4 << 20
	}
	s, err := Listen(loopback4, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestAnIdleSocketCostsUnder256Bytes(t *testing.T) {
	// Memory of other tests that is freed meanwhile can only add, so the least is the truth.
	least := idleSocketCost(t)
	for range 4 {
		if least <= 256 {
			break
		}
		least = min(least, idleSocketCost(t))
	}
	t.Logf("%d bytes of heap for each idle socket, whose struct has %d", least, unsafe.Sizeof(Socket{}))
	if least > 256 {
		t.Errorf("%d bytes of heap for each idle socket", least)
	}
}

// idleSocketCost opens sockets that receive one datagram each, and returns the bytes of heap that
// are free for each when they are closed.
func idleSocketCost(t *testing.T) int64 {
	t.Helper()
	const sockets = 2000
	keep := open(t, Config{})
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	all := make([]*Socket, sockets)
	var came atomic.Int64
	receive := func(ms []Message) { came.Add(int64(len(ms))) }
	goroutines := runtime.NumGoroutine()
	for i := range all {
		s, err := Listen(loopback4, Config{})
		if err != nil {
			t.Fatal(err)
		}
		all[i] = s
		s.Start(receive)
		_, _ = keep.Write([]Message{{Body: []byte("x"), Addr: s.LocalAddr()}})
	}
	eventually(t, "datagrams are missing", func() bool { return came.Load() == sockets })
	if n := runtime.NumGoroutine() - goroutines; n > maxLoops {
		t.Errorf("%d goroutines for %d sockets", n, sockets)
	}
	with := heap()
	for i, s := range all {
		_ = s.Close()
		all[i] = nil
	}
	return (int64(with) - int64(heap())) / sockets
}

func TestRunsGoAsSegmentsAndArriveAsTrains(t *testing.T) {
	from, to := open(t, Config{WriteBuffer: 4 << 20}), open(t, Config{})
	if from.maxSegment.Load() == 0 {
		t.Skip("no UDP_SEGMENT here")
	}
	w := new(writer)
	ms := slices.Repeat([]Message{{Head: []byte("head"), Body: make([]byte, 996), Addr: to.LocalAddr()}}, 100)
	ms = append(ms, Message{Body: []byte("tail"), Addr: to.LocalAddr()})
	if next, stop := w.fill(ms, 0, from.family, MaxDatagram); next != len(ms) || stop != 0 {
		t.Fatalf("fill = %d, %v", next, stop)
	}
	if w.n != 2 || w.runs[0].count != maxSegments || w.runs[1].count != 101-maxSegments {
		t.Fatalf("%d headers with %v", w.n, w.runs[:w.n])
	}
	write := func() {
		if n, err := from.Write(ms); n != len(ms) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	write() // waits in the socket, and shows it to be busy
	got := collect(to)
	for round := 1; round < 3; round++ {
		got.wait(t, round*len(ms))
		release := hold(t) // so that both trains wait together
		write()
		release()
	}
	for i, b := range got.wait(t, 3*len(ms)) {
		want := 1000
		if i%len(ms) == len(ms)-1 {
			want = 4
		}
		if len(b) != want {
			t.Fatalf("datagram %d has %d bytes, want %d", i, len(b), want)
		}
	}
	on, err := unix.GetsockoptInt(to.fd, unix.IPPROTO_UDP, unix.UDP_GRO)
	if err != nil || on != 1 {
		t.Fatalf("UDP_GRO = %d, %v on a busy socket", on, err)
	}
	got.mu.Lock()
	defer got.mu.Unlock()
	if largest := slices.Max(got.sizes); largest <= readBatch {
		t.Errorf("largest batch %d datagrams: no trains were read", largest)
	}
}

func TestNoOffloadNeitherSegmentsNorJoins(t *testing.T) {
	cfg := Config{NoOffload: true, WriteBuffer: 4 << 20}
	from, to := open(t, cfg), open(t, cfg)
	got := collect(to)
	ms := slices.Repeat([]Message{{Body: make([]byte, 100), Addr: to.LocalAddr()}}, 500)
	if n, err := from.Write(ms); n != len(ms) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	got.wait(t, len(ms))
	if on, _ := unix.GetsockoptInt(to.fd, unix.IPPROTO_UDP, unix.UDP_GRO); on != 0 {
		t.Error("UDP_GRO is on")
	}
	if from.maxSegment.Load() != 0 {
		t.Error("UDP_SEGMENT is used")
	}
}

// A socket that sends no checksums is refused segmentation (EINVAL), as others
// are for their device or their route.
func TestRefusedSegmentationIsLatchedAndLosesNothing(t *testing.T) {
	for _, c := range []struct {
		size int
		left []int32 // of maxSegment, after each Write
	}{
		{100, []int32{0, 0}},
		{1300, []int32{segmentAnyPath, segmentAnyPath}},
		{2000, []int32{segmentEthernet, segmentEthernet}},
	} {
		from, to := open(t, Config{WriteBuffer: 4 << 20}), open(t, Config{})
		if err := unix.SetsockoptInt(from.fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
			t.Fatal(err)
		}
		got := collect(to)
		var ms []Message
		for i := range 90 {
			ms = append(ms, Message{Head: []byte{byte(i)}, Body: make([]byte, c.size-1), Addr: to.LocalAddr()})
		}
		for round, left := range c.left {
			if n, err := from.Write(ms); n != len(ms) || err != nil {
				t.Fatalf("size %d: Write = %d, %v", c.size, n, err)
			}
			if now := from.maxSegment.Load(); now != left {
				t.Fatalf("size %d: segments up to %d after round %d, want %d", c.size, now, round, left)
			}
			all := got.wait(t, (round+1)*len(ms))[round*len(ms):]
			for i, b := range all {
				if len(b) != c.size || b[0] != byte(i) {
					t.Fatalf("size %d: datagram %d has %d bytes and number %d", c.size, i, len(b), b[0])
				}
			}
		}
	}
}

func TestUnsendableRunKeepsSegmentation(t *testing.T) {
	from, to := open(t, Config{}), open(t, Config{})
	got := collect(to)
	// From 127.0.0.1 there is no way out of the host: EINVAL, run or not.
	away := slices.Repeat([]Message{{Body: make([]byte, 100), Addr: netip.MustParseAddrPort("192.0.2.1:9")}}, 10)
	was := from.maxSegment.Load()
	n, err := from.Write(append(away, Message{Body: []byte("x"), Addr: to.LocalAddr()}))
	if n != 1 || err == nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	got.wait(t, 1)
	if now := from.maxSegment.Load(); now != was {
		t.Fatalf("segments up to %d, before %d (error %v)", now, was, err)
	}
}

func TestFloodedSocketLeavesRoomInARound(t *testing.T) {
	sender := open(t, Config{NoOffload: true, WriteBuffer: 4 << 20})
	flooded, quiet := open(t, Config{NoOffload: true}), open(t, Config{})
	one := func(to *Socket) Message { return Message{Body: []byte("x"), Addr: to.LocalAddr()} }
	if n, err := sender.Write(slices.Repeat([]Message{one(flooded)}, 1000)); n != 1000 || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	_, _ = sender.Write([]Message{one(quiet)})
	release := hold(t) // the turn after it finds both ready
	var flood, ahead atomic.Int64
	ahead.Store(-1)
	flooded.Start(func(ms []Message) { flood.Add(int64(len(ms))) })
	quiet.Start(func([]Message) { ahead.Store(flood.Load()) })
	release()
	eventually(t, "not all was read", func() bool { return flood.Load() == 1000 && ahead.Load() >= 0 })
	if n := ahead.Load(); n > batchesPerRound*readBatch {
		t.Fatalf("%d datagrams of the flood went first", n)
	}
}

// hold makes the loop stand still until release is called.
func hold(t *testing.T) (release func()) {
	t.Helper()
	if loopLimit() > 1 {
		t.Skip("the sockets are on several loops")
	}
	gate := open(t, Config{})
	entered, leave := make(chan struct{}), make(chan struct{})
	gate.Start(func([]Message) { close(entered); <-leave })
	if n, err := gate.Write([]Message{{Body: []byte("x"), Addr: gate.LocalAddr()}}); n != 1 || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	<-entered
	return func() { close(leave) }
}

func TestAnIdleLoopGivesItsMemoryBack(t *testing.T) {
	if testing.Short() {
		t.Skip("takes several seconds")
	}
	s := open(t, Config{})
	got := collect(s)
	for range 4 {
		_, _ = s.Write(slices.Repeat([]Message{{Body: make([]byte, 60000), Addr: s.LocalAddr()}}, 16))
	}
	got.wait(t, 1)
	loops.mu.Lock()
	l := loops.running[0]
	loops.mu.Unlock()
	if resident(t, l.in.buf) == 0 {
		t.Fatal("nothing is resident: this shows nothing")
	}
	eventually(t, "the buffers stay resident", func() bool { return resident(t, l.in.buf) == 0 })
	_, _ = s.Write([]Message{{Body: []byte("again"), Addr: s.LocalAddr()}})
	eventually(t, "nothing came after the rest", func() bool {
		got.mu.Lock()
		defer got.mu.Unlock()
		return bytes.Equal(got.got[len(got.got)-1], []byte("again"))
	})
}

// resident counts the pages of b that take memory.
func resident(t *testing.T, b []byte) (pages int) {
	t.Helper()
	vec := make([]byte, (len(b)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	for _, v := range vec {
		pages += int(v & 1)
	}
	return pages
}

func TestWithoutDescriptorsListenSaysEMFILE(t *testing.T) {
	keep := open(t, Config{})
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	low := was
	low.Cur = uint64(descriptors(t) + 20)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Skip(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }()
	var err error
	for i := 0; err == nil && i < 100; i++ {
		var s *Socket
		if s, err = Listen(loopback4, Config{}); err == nil {
			defer s.Close()
		}
	}
	if !errors.Is(err, syscall.EMFILE) {
		t.Fatalf("Listen: %v", err)
	}
	got := collect(keep)
	_, _ = keep.Write([]Message{{Body: []byte("x"), Addr: keep.LocalAddr()}})
	got.wait(t, 1)
}

func TestReadingAndWritingDoNotAllocate(t *testing.T) {
	if testmain.Race {
		t.Skip("the race detector makes sync.Pool forget")
	}
	from, to := open(t, Config{WriteBuffer: 4 << 20}), open(t, Config{})
	var came atomic.Int64
	to.Start(func(ms []Message) { came.Add(int64(len(ms))) })
	var ms []Message
	for i := range 120 {
		ms = append(ms, Message{Head: []byte("head"), Body: make([]byte, 100+i/40), Addr: to.LocalAddr()})
	}
	sent := int64(0)
	round := func() {
		n, err := from.Write(ms)
		if n != len(ms) || err != nil {
			t.Errorf("Write = %d, %v", n, err)
		}
		sent += int64(n)
		for deadline := time.Now().Add(patience); came.Load() < sent; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatal("datagrams are missing")
			}
		}
	}
	for range 20 {
		round()
	}
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations for 120 datagrams written and read", n)
	}
	big := []Message{{Body: make([]byte, MaxDatagram+1), Addr: to.LocalAddr()}}
	if n := testing.AllocsPerRun(100, func() { _, _ = from.Write(big) }); n != 0 {
		t.Errorf("%v allocations for a Write that fails", n)
	}
}

func TestBuffersTellsWhatTheHostGrants(t *testing.T) {
	read, write, ok := Buffers(64 << 10)
	if !ok || read < 64<<10 || write < 64<<10 {
		t.Fatalf("Buffers = %d, %d, %v", read, write, ok)
	}
	b, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		t.Skip(err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	read, _, _ = Buffers(2 * limit)
	if read != limit && read != 2*limit {
		t.Fatalf("Buffers grants %d of %d, rmem_max is %d", read, 2*limit, limit)
	}
}

// FuzzSockaddr decodes what a system could write and encodes it again.
func FuzzSockaddr(f *testing.F) {
	f.Add(true, uint16(53), []byte{127, 0, 0, 1})
	f.Add(false, uint16(65535), []byte{15: 1})
	f.Add(false, uint16(0), []byte{10: 0xff, 11: 0xff, 15: 9})
	f.Fuzz(func(t *testing.T, four bool, port uint16, raw []byte) {
		var a16 [16]byte
		copy(a16[:], raw)
		ip, family := netip.AddrFrom16(a16), uint16(unix.AF_INET6)
		if four {
			ip, family = netip.AddrFrom4([4]byte(a16[:4])), unix.AF_INET
		}
		want := netip.AddrPortFrom(ip.Unmap(), port)
		var sa sockaddr
		if sa.put(want, family) == 0 {
			t.Fatalf("%v does not fit family %d", want, family)
		}
		if got := sa.get(); got != want {
			t.Fatalf("%v became %v", want, got)
		}
	})
}

// FuzzFindControl looks for messages in arbitrary control bytes.
func FuzzFindControl(f *testing.F) {
	var c control
	n := c.putSegment(1200)
	f.Add(unsafe.Slice((*byte)(unsafe.Pointer(&c)), n))
	f.Add([]byte{})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		var aligned [32]uint64 // as buffers for control messages are
		oob := unsafe.Slice((*byte)(unsafe.Pointer(&aligned)), unsafe.Sizeof(aligned))
		oob = oob[:copy(oob, data)]
		at, space, value := findControl(oob, unix.UDP_SEGMENT)
		if at >= 0 && (at+space > len(oob) || len(value) > space) {
			t.Fatalf("found %d bytes at %d of %d", space, at, len(oob))
		}
	})
}

func receiveBuffer(t *testing.T, s *Socket) int {
	t.Helper()
	got, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestBusySocketGetsALargerBuffer(t *testing.T) {
	from := open(t, Config{WriteBuffer: 4 << 20})
	for _, asked := range []int{0, 100 << 10} {
		to, err := Listen(loopback4, Config{ReadBuffer: asked, NoOffload: true})
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		quiet := receiveBuffer(t, to)
		if asked != 0 && quiet != 2*asked {
			t.Fatalf("SO_RCVBUF = %d, asked for %d", quiet, asked)
		}
		ms := slices.Repeat([]Message{{Body: make([]byte, 10), Addr: to.LocalAddr()}}, busyBatch-1)
		send := func() {
			if n, err := from.Write(ms); n != len(ms) || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
		}
		send() // waits in the socket
		got := collect(to)
		got.wait(t, len(ms))
		if now := receiveBuffer(t, to); now != quiet {
			t.Fatalf("SO_RCVBUF = %d after %d datagrams at once, was %d", now, len(ms), quiet)
		}
		release := hold(t)
		send()
		send()
		release()
		got.wait(t, 3*len(ms))
		want := quiet
		if asked == 0 {
			rcv, _, ok := Buffers(busyBuffer)
			if !ok {
				t.Fatal("the host does not tell its buffers")
			}
			want = max(quiet, 2*rcv)
		}
		if now := receiveBuffer(t, to); now != want {
			t.Errorf("SO_RCVBUF = %d on a busy socket that asked for %d, want %d", now, asked, want)
		}
	}
}

func TestSocketsWithLargeBuffersAreBounded(t *testing.T) {
	busy := func() *Socket {
		s, err := Listen(loopback4, Config{NoOffload: true})
		if err != nil {
			t.Fatal(err)
		}
		s.fdmu.RLock()
		s.prepareForMany()
		s.fdmu.RUnlock()
		return s
	}
	before := roomySockets.Load()
	s := busy()
	if got := roomySockets.Load() - before; got > 1 {
		t.Fatalf("%d sockets are counted", got)
	} else if got == 0 {
		t.Skip("the system's own buffer is as large")
	}
	_ = s.Close()
	if got := roomySockets.Load(); got != before {
		t.Fatalf("%d sockets are counted after Close, want %d", got, before)
	}
	roomySockets.Add(maxRoomy - before)
	defer roomySockets.Add(before - maxRoomy)
	s = busy()
	defer s.Close()
	if got := receiveBuffer(t, s); got >= 2*busyBuffer {
		t.Errorf("SO_RCVBUF = %d past the bound", got)
	}
	if got := roomySockets.Load(); got != maxRoomy {
		t.Errorf("%d sockets are counted, want %d", got, maxRoomy)
	}
}
