package socks

import (
	"encoding/binary"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// A request of sock_diag(7) for one socket, and its answer. Numbers are the machine's
// own but for ports and addresses:
//
//	request  nlmsghdr 16 · family 1 · protocol 1 · 0 2 · states 4 · id 48
//	answer   nlmsghdr 16 · family 1 · state 1 · 0 2 · id 48 · expires 4 · queues 8 · uid 4 · inode 4
//	id       source port 2 · destination port 2 · source 16 · destination 16 · interface 4 · cookie 8
const (
	diagByFamily  = 20 // SOCK_DIAG_BY_FAMILY
	diagHeader    = unix.SizeofNlMsghdr
	diagID        = 48
	diagRequest   = diagHeader + 8 + diagID
	diagUserAt    = diagHeader + 4 + diagID + 12
	diagAnswerMin = diagUserAt + 4

	tcpEstablished = 1

	// diagTimeout bounds the wait for an answer, in ms. The kernel gives it before the
	// request's system call returns.
	diagTimeout = 100
)

// diag is a netlink socket of the process, opened when it is first needed.
var diag struct {
	mu  sync.Mutex
	fd  int // 0 is none yet
	seq uint32
	buf [1024]byte
}

// askSystem returns the user of the socket at far that talks to ours at near. Any process
// may ask that, of sockets of its network namespace.
func askSystem(kind socketKind, far, near netip.AddrPort) socketUser {
	if far.Addr().Zone() != "" || near.Addr().Zone() != "" {
		return socketUser{} // it would take the number of the interface
	}
	diag.mu.Lock()
	defer diag.mu.Unlock()
	if diag.fd == 0 && !openDiag() {
		return socketUser{}
	}
	diag.seq++
	request := diagRequestFor(diag.buf[:0], kind, far, near, diag.seq)
	if err := unix.Sendto(diag.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return socketUser{}
	}
	for {
		n, _, err := unix.Recvfrom(diag.fd, diag.buf[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return socketUser{}
		}
		if u, ours := readDiag(diag.buf[:n], kind, diag.seq); ours {
			return u
		}
	}
}

// openDiag opens the socket of diag. The caller has diag.mu.
func openDiag() bool {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return false
	}
	timeout := unix.NsecToTimeval(diagTimeout * 1e6)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		_ = unix.Close(fd)
		return false
	}
	diag.fd = fd
	return true
}

// diagRequestFor appends the request for the socket at far to b.
func diagRequestFor(b []byte, kind socketKind, far, near netip.AddrPort, seq uint32) []byte {
	family := byte(unix.AF_INET6)
	if far.Addr().Unmap().Is4() {
		family = unix.AF_INET
	}
	source, destination := far, near
	if kind == kindUDP {
		source, destination = near, far // for UDP the kernel takes them the other way round
	}
	native := binary.NativeEndian
	b = native.AppendUint32(b, diagRequest)
	b = native.AppendUint16(b, diagByFamily)
	b = native.AppendUint16(b, unix.NLM_F_REQUEST)
	b = native.AppendUint32(b, seq)
	b = native.AppendUint32(b, 0)
	b = append(b, family, byte(kind), 0, 0)
	b = native.AppendUint32(b, ^uint32(0))
	b = binary.BigEndian.AppendUint16(b, source.Port())
	b = binary.BigEndian.AppendUint16(b, destination.Port())
	b = appendDiagAddr(b, source.Addr())
	b = appendDiagAddr(b, destination.Addr())
	b = native.AppendUint32(b, 0)
	return native.AppendUint64(b, ^uint64(0)) // no cookie
}

func appendDiagAddr(b []byte, ip netip.Addr) []byte {
	if ip = ip.Unmap(); ip.Is4() {
		a := ip.As4()
		return append(append(b, a[:]...), make([]byte, 12)...)
	}
	a := ip.As16()
	return append(b, a[:]...)
}

// readDiag reads an answer; not ours is one to an earlier request.
func readDiag(b []byte, kind socketKind, seq uint32) (u socketUser, ours bool) {
	if len(b) < diagHeader {
		return u, true
	}
	native := binary.NativeEndian
	length, message := len(b), native.Uint16(b[4:])
	switch {
	case native.Uint32(b[8:]) != seq:
		return u, false
	case message == unix.NLMSG_ERROR && length >= diagHeader+4:
		if errno := unix.Errno(-int32(native.Uint32(b[diagHeader:]))); errno == unix.ENOENT {
			u.result = lookupNone // or no table for that kind, which owners.of detects
		}
	case message == diagByFamily && length >= diagAnswerMin:
		if kind == kindTCP && b[diagHeader+1] != tcpEstablished {
			u.result = lookupNone // one that has ended has no user
			break
		}
		u = socketUser{native.Uint32(b[diagUserAt:]), lookupFound}
	}
	return u, true
}
