package udpio

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batchesPerTurn is how often a loop reads one socket before the others have
	// their turn: a flood gets 128 datagrams, or trains of them, at a time.
	batchesPerTurn = 2
	// groAfter is the batch that shows a socket to be busy. Only then is UDP_GRO
	// worth its system call.
	groAfter = 16
)

// Socket is an unconnected UDP socket.
type Socket struct {
	loop    *loop
	receive func([]Message) // guarded by reading
	turn    *Turn
	local   netip.AddrPort
	family  uint16

	// queued, gro and early belong to the reading side. early: an event came
	// before Start. gro: UDP_GRO was tried, or must not be.
	queued bool
	gro    bool
	early  bool

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
		return nil, fmt.Errorf("listen on UDP %v: %w", local, err)
	}
	return s, nil
}

func listen(local netip.AddrPort, cfg Config) (*Socket, error) {
	ip := local.Addr().Unmap()
	if !ip.IsValid() {
		ip = netip.IPv6Unspecified()
	}
	s := &Socket{gro: cfg.NoOffload}
	err := s.open(netip.AddrPortFrom(ip, local.Port()))
	if ip == netip.IPv6Unspecified() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
		err = s.open(netip.AddrPortFrom(netip.IPv4Unspecified(), local.Port()))
	}
	if err != nil {
		return nil, err
	}
	if err := s.set(cfg); err != nil {
		_ = unix.Close(s.fd)
		return nil, err
	}
	if s.loop, err = join(); err != nil {
		_ = unix.Close(s.fd)
		return nil, err
	}
	if err := s.loop.watch(s); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// open makes the descriptor, binds it and learns the port.
func (s *Socket) open(local netip.AddrPort) error {
	s.family = unix.AF_INET6
	if local.Addr().Is4() {
		s.family = unix.AF_INET
	}
	fd, err := unix.Socket(int(s.family), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if s.local, err = bind(fd, local); err != nil {
		_ = unix.Close(fd)
		return err
	}
	s.fd = fd
	return nil
}

func bind(fd int, local netip.AddrPort) (netip.AddrPort, error) {
	ip := local.Addr()
	var to unix.Sockaddr
	if ip.Is4() {
		to = &unix.SockaddrInet4{Port: int(local.Port()), Addr: ip.As4()}
	} else {
		if ip.IsUnspecified() {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
				return netip.AddrPort{}, os.NewSyscallError("setsockopt", err)
			}
		}
		to = &unix.SockaddrInet6{Port: int(local.Port()), Addr: ip.As16(), ZoneId: scope(ip)}
	}
	if err := unix.Bind(fd, to); err != nil {
		return netip.AddrPort{}, os.NewSyscallError("bind", err)
	}
	if local.Port() != 0 {
		return local, nil
	}
	// unix.Getsockname would make a second system call, for the socket's protocol.
	var sa sockaddr
	size := uint32(unsafe.Sizeof(sa))
	if _, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size))); errno != 0 {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", errno)
	}
	return netip.AddrPortFrom(ip, sa.get().Port()), nil
}

func (s *Socket) set(cfg Config) error {
	if !cfg.NoOffload && canSegment(s.fd) {
		s.maxSegment.Store(MaxDatagram)
	}
	if err := setBuffer(s.fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, cfg.ReadBuffer); err != nil {
		return err
	}
	return setBuffer(s.fd, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, cfg.WriteBuffer)
}

// segmentation remembers what the kernel said: 0 not asked yet, 1 yes, 2 no.
var segmentation atomic.Int32

// canSegment must be asked: a kernel without UDP_SEGMENT (before 4.18) ignores
// the control message and sends a run as one large datagram.
func canSegment(fd int) bool {
	if segmentation.Load() == 0 {
		answer := int32(1)
		if _, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT); err != nil {
			answer = 2
		}
		segmentation.Store(answer)
	}
	return segmentation.Load() == 1
}

// OnTurn has t called after each turn of the event loop in which s received
// something. It is called before Start, at most once.
func (s *Socket) OnTurn(t *Turn) { s.turn = t }

// Start begins reading. receive is called with what was read, by one goroutine
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
		s.loop.again(s)
	}
}

// read is the loop's visit. It says whether there may be more to read.
func (s *Socket) read(l *loop) (more bool) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.receive == nil {
		s.early = true
		return false
	}
	failed := 0
	for range batchesPerTurn {
		n, errno := s.readBatch(l)
		if errno == unix.EAGAIN || errno == unix.EBADF {
			return false
		}
		if errno != 0 {
			failed++ // interrupted, or an error that is gone once reported
			continue
		}
		if s.turn != nil {
			l.touch(s.turn)
		}
		l.many = l.many || n > 1
		s.receive(l.in.ms)
		if n < readBatch {
			return false // the system stops short only at the end of the queue
		}
	}
	// An error that stays must not make the loop spin: the next arrival tells.
	return failed < batchesPerTurn
}

func (s *Socket) readBatch(l *loop) (int, unix.Errno) {
	s.fdmu.RLock()
	defer s.fdmu.RUnlock()
	if s.closed {
		return 0, unix.EBADF
	}
	n, errno := l.in.read(s.fd)
	if n >= groAfter && !s.gro {
		s.gro = true
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	}
	return n, errno
}

// Write sends ms in order and returns how many the system took. It never waits:
// what does not fit into the socket's buffer is dropped, with no error. A
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

// LocalAddr is the address the socket is bound to, IPv4 unmapped.
func (s *Socket) LocalAddr() netip.AddrPort { return s.local }

// Close closes the socket. Once it returns, receive is not running and will not
// be called again; only when Close was called from the receive of this or
// another socket, or from a Turn, it does not wait for one that is running. A
// second Close returns net.ErrClosed.
func (s *Socket) Close() error {
	s.fdmu.Lock()
	if s.closed {
		s.fdmu.Unlock()
		return net.ErrClosed
	}
	s.closed = true
	s.loop.forget(s.fd)
	err := os.NewSyscallError("close", unix.Close(s.fd))
	s.fdmu.Unlock()

	// The callback that runs now is the last. It may be the one that called us.
	settled := s.reading.TryLock()
	if !settled && !calledFrom(loopEntry) {
		s.reading.Lock()
		settled = true
	}
	if settled {
		s.receive = nil
		s.reading.Unlock()
	}
	s.loop.leave()
	return err
}
