package udpio

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// batchesPerRound is how often a loop reads one socket in a round: a flood gets 128
	// datagrams, or trains of them, at a time.
	batchesPerRound = 2
	// busyBatch is the batch that shows a socket to be busy. Only then are UDP_GRO and
	// a larger buffer worth their system calls.
	busyBatch = 16
	// busyBuffer is the SO_RCVBUF of a busy socket in bytes, unless another was asked
	// for. The system's 208 KiB hold 277 small datagrams: 7 ms at 40,000/s, less than
	// other processes keep a processor.
	busyBuffer = 1 << 20
	// maxRoomy bounds the sockets that have it at a time: the system charges each up to
	// twice as much, for which anybody's datagrams do. It is first come, first served, and
	// kept until the socket closes.
	maxRoomy = 1024
)

// Socket is an unconnected UDP socket.
type Socket struct {
	loop    *loop
	receive func([]Message) // guarded by reading
	local   netip.AddrPort  // as bound: the port is 0 if the system chose it
	port    atomic.Uint32   // the one it chose, once somebody has asked
	family  uint16

	// queued, busy and early belong to the reading side. early: an event came
	// before Start. busy: a batch of busyBatch was read.
	queued bool
	busy   bool
	early  bool

	offload bool // UDP_GRO once busy
	roomy   bool // busyBuffer once busy
	counted bool // among roomySockets; set while fdmu is held for reading

	maxSegment atomic.Int32 // the largest that UDP_SEGMENT is used for, 0 for never

	// fdmu is held for reading by system calls on fd, none of which waits, so
	// that Close cannot take it from under them.
	fdmu   sync.RWMutex
	fd     int
	closed bool // guarded by fdmu

	// reading is held by the loop while it reads and calls back.
	reading sync.Mutex
}

// Listen opens a socket on local. On an unspecified IPv6 address it carries
// IPv4 as well; on a host without IPv6 that becomes IPv4 alone. The zero local
// is [::]:0. With no descriptor left the error is syscall.EMFILE (errors.Is).
func Listen(local netip.AddrPort, cfg Config) (*Socket, error) {
	s, err := listen(local, cfg)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: net.UDPAddrFromAddrPort(local), Err: err}
	}
	return s, nil
}

func listen(local netip.AddrPort, cfg Config) (*Socket, error) {
	ip := local.Addr().Unmap()
	if !ip.IsValid() {
		ip = netip.IPv6Unspecified()
	}
	s := &Socket{offload: !cfg.NoOffload, roomy: cfg.ReadBuffer == 0}
	err := s.open(netip.AddrPortFrom(ip, local.Port()))
	if ip == netip.IPv6Unspecified() && lacksIPv6(err) {
		err = s.open(netip.AddrPortFrom(netip.IPv4Unspecified(), local.Port()))
	}
	if err != nil {
		return nil, err
	}
	if err := s.set(cfg); err != nil {
		_ = closeSocket(s.fd)
		return nil, err
	}
	if s.loop, err = join(); err != nil {
		_ = closeSocket(s.fd)
		return nil, err
	}
	if err := s.loop.watch(s.fd, s, unix.EPOLLIN); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// open makes the descriptor and binds it.
func (s *Socket) open(local netip.AddrPort) error {
	s.family = unix.AF_INET6
	if local.Addr().Is4() {
		s.family = unix.AF_INET
	}
	fd, err := openSocket(s.family, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	if err := bind(fd, local); err != nil {
		_ = closeSocket(fd)
		return err
	}
	s.fd, s.local = fd, local
	return nil
}

func bind(fd int, local netip.AddrPort) error {
	family := uint16(unix.AF_INET6)
	if local.Addr().Is4() {
		family = unix.AF_INET
	} else if local.Addr().IsUnspecified() && onlyIPv6(fd) {
		if err := setOption(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return err
		}
	}
	var name sockaddr
	return bindSocket(fd, &name, name.put(local, family))
}

func (s *Socket) set(cfg Config) error {
	if !cfg.NoOffload && canSegment(s.fd) {
		s.maxSegment.Store(MaxDatagram)
	}
	if cfg.TellLocal {
		level, option := unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO // of IPv4 too
		if s.family == unix.AF_INET {
			level, option = unix.IPPROTO_IP, unix.IP_PKTINFO
		}
		if err := setOption(s.fd, level, option, 1); err != nil {
			return err
		}
	}
	if err := setBuffer(s.fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, cfg.ReadBuffer); err != nil {
		return err
	}
	return setBuffer(s.fd, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, cfg.WriteBuffer)
}

// The kernel's answers; it is asked once.
var segmentation, v6only answer

// canSegment must be asked: a kernel without UDP_SEGMENT (before 4.18) ignores
// the control message and sends a run as one large datagram.
func canSegment(fd int) bool {
	return segmentation.get(func() bool {
		_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		return err == nil
	})
}

// onlyIPv6 reports whether a new IPv6 socket leaves IPv4 out (net.ipv6.bindv6only).
func onlyIPv6(fd int) bool {
	return v6only.get(func() bool {
		only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		return err != nil || only != 0
	})
}

// answer is a yes or no that is asked for once, or twice at the same time.
type answer struct{ v atomic.Int32 } // 0 not asked yet, 1 yes, 2 no

func (a *answer) get(ask func() bool) bool {
	if a.v.Load() == 0 {
		got := int32(2)
		if ask() {
			got = 1
		}
		a.v.Store(got)
	}
	return a.v.Load() == 1
}

// Start begins reading. receive is called with the datagrams read, by one goroutine
// at a time; the messages are valid until it returns, and it must not wait.
// Start is called once.
func (s *Socket) Start(receive func(ms []Message)) {
	s.reading.Lock()
	s.receive = receive
	early := s.early
	s.reading.Unlock()
	if !early {
		return
	}
	s.fdmu.RLock()
	defer s.fdmu.RUnlock()
	if !s.closed {
		s.loop.again(s.fd)
	}
}

func (s *Socket) due(uint32) bool {
	if s.queued {
		return false
	}
	s.queued = true
	return true
}

func (s *Socket) visit(l *loop) (more bool) {
	s.queued = false
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.receive == nil {
		s.early = true
		return false
	}
	failed := 0
	for range batchesPerRound {
		n, errno := s.readBatch(l)
		if errno == unix.EAGAIN || errno == unix.EBADF {
			return false
		}
		if errno != 0 {
			failed++ // interrupted, or an error that is gone once reported
			continue
		}
		l.many = l.many || n > 1
		s.receive(l.in.ms)
		if n < readBatch {
			return false // the system stops short only at the end of the queue
		}
	}
	// An error that stays must not make the loop spin: the next arrival tells.
	return failed < batchesPerRound
}

func (s *Socket) readBatch(l *loop) (int, unix.Errno) {
	s.fdmu.RLock()
	defer s.fdmu.RUnlock()
	if s.closed {
		return 0, unix.EBADF
	}
	n, errno := l.in.read(s.fd)
	if n >= busyBatch && !s.busy {
		s.busy = true
		s.prepareForMany()
	}
	return n, errno
}

// roomySockets is how many have busyBuffer.
var roomySockets atomic.Int32

// prepareForMany is called once on a busy socket. What the system refuses stays as it was.
func (s *Socket) prepareForMany() {
	if s.offload {
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	}
	if !s.roomy {
		return
	}
	has, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil || has >= 2*busyBuffer {
		return
	}
	if roomySockets.Add(1) > maxRoomy {
		roomySockets.Add(-1)
		return
	}
	s.counted = true
	_ = setBuffer(s.fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, busyBuffer)
}

// Write sends ms in order and returns how many the system took. It never waits:
// datagrams that do not fit into the socket's buffer are dropped, with no error. A
// datagram that cannot be sent (too large, no route) does not stop
// those after it; err is the first such error, a syscall.Errno. After Close it
// is net.ErrClosed. Any goroutine may call it.
func (s *Socket) Write(ms []Message) (sent int, err error) {
	s.fdmu.RLock()
	defer s.fdmu.RUnlock()
	if s.closed {
		return 0, net.ErrClosed
	}
	w := writers.Get().(*writer)
	w.write(s.fd, s.family, &s.maxSegment, ms)
	sent = w.sent
	if w.err != 0 {
		err = w.err
	}
	writers.Put(w)
	return sent, err
}

// LocalAddr returns the address that the socket is bound to, IPv4 unmapped. If the system
// chose the port, it is asked for it here; after Close the port may be 0.
func (s *Socket) LocalAddr() netip.AddrPort {
	if s.local.Port() != 0 {
		return s.local
	}
	s.fdmu.RLock()
	defer s.fdmu.RUnlock()
	if s.port.Load() == 0 && !s.closed {
		s.port.Store(uint32(localOf(s.fd).Port()))
	}
	return netip.AddrPortFrom(s.local.Addr(), uint16(s.port.Load()))
}

// Close closes the socket. It does not wait: receive may be running, and is called at most once
// more, until Wait returns. A second Close returns net.ErrClosed. Any goroutine may call it.
func (s *Socket) Close() error {
	s.fdmu.Lock()
	defer s.fdmu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.closed = true
	s.loop.forget(s.fd)
	err := closeSocket(s.fd)
	if s.counted {
		roomySockets.Add(-1)
	}
	s.loop.leave()
	return err
}

// Wait blocks until receive has returned, which is then not called again. It comes after Close. It must be
// called neither from receive nor with a lock held that receive takes.
func (s *Socket) Wait() {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.receive = nil
}
