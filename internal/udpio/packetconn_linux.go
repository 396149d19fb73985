package udpio

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"wmproxy/internal/tune"
)

const (
	trainBatch = 8   // trains in one recvmmsg
	oobSize    = 192 // UDP_GRO, TOS and packet info of both IP versions take 144
	maxPeers   = 4096
	// readAttempts bounds the tries past an error that is gone once reported.
	readAttempts = 3
	// yieldBatch is how many datagrams are handed out before the goroutines that wait for their
	// contents may run (tune.BatchYield). quic-go keeps 128 DATAGRAM frames and 256 packets for a
	// connection and loses the others; one recvmmsg brings more than either.
	yieldBatch = 64
)

// PacketConn is the UDP socket under QUIC. It is a *net.UDPConn, so that quic-go
// finds its control messages, buffers and deadlines, with a ReadBatch of its
// own. Nothing else may read it: other calls would see whole trains.
type PacketConn struct {
	*net.UDPConn
	raw       syscall.RawConn
	noOffload bool

	mu     sync.Mutex
	fill   func(fd uintptr) bool
	in     trains
	next   int  // train to hand out from
	offset int  // in it
	handed int  // since others were let run
	waited bool // for the datagrams under way
	peers  peers

	delivered atomic.Bool // since others were let run
	out       datagramWriter
}

// open prepares ReadBatch.
func (c *PacketConn) open(cfg Config) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	c.raw, c.noOffload = raw, cfg.NoOffload
	c.out.open(c.UDPConn)
	c.fill = func(fd uintptr) bool {
		read := c.in.read(int(fd))
		c.waited = c.waited || !read
		return read
	}
	if cfg.NoOffload {
		return nil
	}
	return raw.Control(func(fd uintptr) {
		// A kernel without UDP_GRO sends no trains: nothing else changes.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	})
}

// ReadBatch fills ms with datagrams and returns how many, at least one. It waits
// for the first, until the read deadline. Each message takes one datagram in
// Buffers[0], cut to that (MSG_TRUNC in Flags), and its control messages in OOB.
// Addr is shared between messages and must not be changed. flags is not used.
func (c *PacketConn) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	if len(ms) == 0 {
		return 0, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == c.in.n {
		c.next, c.in.n = 0, 0
		tune.YieldToPoller()
		c.waited = false
		if err := c.raw.Read(c.fill); err != nil {
			return 0, err
		}
		if c.waited {
			tune.NotePolled()
		}
	}
	if c.handed >= yieldBatch && tune.BatchYield.On() {
		c.handed = 0
		if c.delivered.Swap(false) {
			runtime.Gosched()
		}
	}
	n := 0
	for n < len(ms) && c.next < c.in.n {
		c.hand(&ms[n])
		n++
	}
	c.handed += n
	return n, nil
}

// Delivered notes that a DATAGRAM frame has reached its reader. While there
// are some, ReadBatch yields after each yieldBatch, without which a flood is
// lost in quic-go's queues on one processor. Streams do better without:
// they fill those queues, and a loss there keeps the socket's own short.
func (c *PacketConn) Delivered() {
	if !c.delivered.Load() {
		c.delivered.Store(true)
	}
}

// hand gives the next datagram out.
func (c *PacketConn) hand(m *ipv4.Message) {
	i := c.next
	train := c.in.body(i)
	if c.offset == 0 {
		c.peers.find(c.in.names[i].get())
	}
	body := train[c.offset:min(c.offset+c.in.sizes[i], len(train))]
	c.offset += len(body)
	if c.offset == len(train) {
		c.next, c.offset = i+1, 0
	}
	m.N = copy(m.Buffers[0], body)
	m.NN = copy(m.OOB, c.in.oob(i))
	m.Addr = c.peers.addr
	m.Flags = 0
	if m.N < len(body) {
		m.Flags = unix.MSG_TRUNC
	}
}

// WriteMsgUDP is net.UDPConn's without the scheduler being told (see sendmsg),
// except that with NoOffload it sends a train that oob asks the system to segment
// (UDP_SEGMENT) as single datagrams.
func (c *PacketConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	if !c.noOffload || len(oob) > oobSize {
		return c.out.write(c.raw, b, oob, addr)
	}
	at, space, value := findControl(oob, unix.UDP_SEGMENT)
	if at < 0 || len(value) < 2 {
		return c.out.write(c.raw, b, oob, addr)
	}
	size := int(binary.NativeEndian.Uint16(value))
	plain := plains.Get().(*[oobSize]byte)
	defer plains.Put(plain)
	m := copy(plain[:], oob[:at])
	m += copy(plain[m:], oob[at+space:])
	for n < len(b) && err == nil {
		var sent int
		sent, _, err = c.out.write(c.raw, b[n:min(n+max(size, 1), len(b))], plain[:m], addr)
		n += sent
	}
	return n, len(oob), err
}

// datagramWriter sends single datagrams, or trains, and waits for room like
// net.UDPConn does. It allocates nothing.
type datagramWriter struct {
	mu     sync.Mutex
	family uint16
	flush  func(fd uintptr) bool
	hdr    unix.Msghdr
	iov    unix.Iovec
	name   sockaddr
	sent   int
	errno  unix.Errno
}

func (w *datagramWriter) open(c *net.UDPConn) {
	w.family = unix.AF_INET
	if c.LocalAddr().(*net.UDPAddr).IP.To4() == nil {
		w.family = unix.AF_INET6
	}
	w.flush = func(fd uintptr) bool {
		w.sent, w.errno = sendmsg(int(fd), &w.hdr)
		return w.errno != unix.EAGAIN
	}
}

func (w *datagramWriter) write(raw syscall.RawConn, b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&w.name)), Iov: &w.iov}
	if w.hdr.Namelen = w.name.put(addr.AddrPort(), w.family); w.hdr.Namelen == 0 {
		return 0, 0, unix.EAFNOSUPPORT
	}
	w.iov.Base = unsafe.SliceData(b)
	w.iov.SetLen(len(b))
	w.hdr.SetIovlen(1)
	if len(oob) > 0 {
		w.hdr.Control = unsafe.SliceData(oob)
		w.hdr.SetControllen(len(oob))
	}
	err = raw.Write(w.flush)
	w.iov.Base, w.hdr.Control = nil, nil
	if err == nil && w.errno != 0 {
		err = os.NewSyscallError("sendmsg", w.errno)
	}
	if err != nil {
		return 0, 0, err
	}
	return w.sent, len(oob), nil
}

// plains is room for control messages without UDP_SEGMENT.
var plains = sync.Pool{New: func() any { return new([oobSize]byte) }}

// trains holds the result of one recvmmsg: datagrams, and trains that UDP_GRO made of them.
type trains struct {
	buf   []byte // trainBatch buffers of readStride bytes, from the first read on
	hdrs  [trainBatch]unix.Mmsghdr
	iovs  [trainBatch]unix.Iovec
	names [trainBatch]sockaddr
	oobs  [trainBatch][oobSize / 8]uint64 // control messages are aligned
	sizes [trainBatch]int                 // of the datagrams in each train
	n     int                             // trains read

	calls, total atomic.Int64 // recvmmsg calls that brought any, and trains in them
}

func (t *trains) open() {
	t.buf = make([]byte, trainBatch*readStride)
	for i := range t.hdrs {
		h := &t.hdrs[i].Hdr
		t.iovs[i].Base = &t.buf[i*readStride]
		t.iovs[i].SetLen(readSize)
		h.Iov = &t.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&t.names[i]))
		h.Control = (*byte)(unsafe.Pointer(&t.oobs[i]))
	}
}

// read reports whether something was read; if not, the caller waits for the next
// arrival, whatever the reason: quic-go would end all connections on an error.
func (t *trains) read(fd int) bool {
	if t.buf == nil {
		t.open()
	}
	for range readAttempts {
		for i := range t.hdrs {
			h := &t.hdrs[i].Hdr
			h.Namelen = unix.SizeofSockaddrInet6
			h.SetControllen(oobSize)
		}
		n, errno := recvmmsg(fd, t.hdrs[:])
		if errno == 0 {
			t.n = n
			t.calls.Add(1)
			t.total.Add(int64(n))
			for i := range n {
				t.split(i)
			}
			return true
		}
		if errno == unix.EAGAIN {
			return false
		}
	}
	return false
}

// split learns the size of the datagrams in train i and drops the control
// message that told it, which is true for the train alone.
func (t *trains) split(i int) {
	t.sizes[i] = readSize
	oob := t.oob(i)
	at, space, value := findControl(oob, unix.UDP_GRO)
	if at < 0 || len(value) < 4 {
		return
	}
	if size := int(int32(binary.NativeEndian.Uint32(value))); size > 0 {
		t.sizes[i] = size
	}
	n := copy(oob[at:], oob[at+space:])
	t.hdrs[i].Hdr.SetControllen(at + n)
}

func (t *trains) body(i int) []byte { return t.buf[i*readStride:][:t.hdrs[i].Len] }

func (t *trains) oob(i int) []byte {
	b := (*[oobSize]byte)(unsafe.Pointer(&t.oobs[i]))
	return b[:min(int(t.hdrs[i].Hdr.Controllen), oobSize)]
}

// findControl finds the control message of IPPROTO_UDP with that type in oob: its
// offset (-1 without one), the space it takes, and its value.
func findControl(oob []byte, kind int32) (at, space int, value []byte) {
	for data := oob; len(data) > 0; {
		h, body, rest, err := unix.ParseOneSocketControlMessage(data)
		if err != nil {
			break
		}
		if h.Level == unix.IPPROTO_UDP && h.Type == kind {
			return len(oob) - len(data), len(data) - len(rest), body
		}
		data = rest
	}
	return -1, 0, nil
}

// peers remembers the *net.UDPAddr of sources, which would else be made anew for
// each datagram. A flood of forged sources empties it now and then.
type peers struct {
	known map[netip.AddrPort]*net.UDPAddr
	from  netip.AddrPort // the source that addr stands for
	addr  *net.UDPAddr
}

func (p *peers) find(from netip.AddrPort) {
	if p.addr != nil && p.from == from {
		return
	}
	addr, ok := p.known[from]
	if !ok {
		addr = net.UDPAddrFromAddrPort(from)
		if p.known == nil || len(p.known) >= maxPeers {
			p.known = make(map[netip.AddrPort]*net.UDPAddr)
		}
		p.known[from] = addr
	}
	p.from, p.addr = from, addr
}
