package udpio

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"wmproxy/internal/tune"
)

// toldBatch is the most datagrams in a sendmmsg that the scheduler is not told of. A larger batch
// may take 100 µs, in which other goroutines and the garbage collector should not have to wait.
const toldBatch = 16

// recvmmsg reads a batch. The scheduler is not told of it, however large the batches are that come: of reads after a
// large batch it was told on trial, and the CPU per datagram was 1.08 times (64 B), 1.13 times (200 B) and 1.28 times
// (1,200 B) as much (benchcompare -only 64,200,1200 -systems quic).
func recvmmsg(fd int, hdrs []unix.Mmsghdr) (int, unix.Errno) {
	n, errno := tune.Syscall(unix.SYS_RECVMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(hdrs))), uintptr(len(hdrs)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

func sendmmsg(fd int, hdrs []unix.Mmsghdr) (int, unix.Errno) {
	const flags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	if len(hdrs) > toldBatch {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(hdrs))), uintptr(len(hdrs)), flags, 0, 0)
		return int(n), errno
	}
	n, errno := tune.Syscall(unix.SYS_SENDMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(hdrs))), uintptr(len(hdrs)), flags, 0, 0)
	return int(n), errno
}

func sendmsg(fd int, h *unix.Msghdr) (int, unix.Errno) {
	n, errno := tune.Syscall(unix.SYS_SENDMSG, uintptr(fd),
		uintptr(unsafe.Pointer(h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0, 0)
	return int(n), errno
}

// control is room for the control messages of one datagram or train, back to back:
//
//	length 8 or 4 · level 4 · type 4 · value · padding
//
// The value is 2 bytes (UDP_SEGMENT), 4 (UDP_GRO), 12 (IP_PKTINFO) or 20 (IPV6_PKTINFO).
// UDP_SEGMENT, if there, is the first.
type control [8]uint64

func (c *control) header(at int) *unix.Cmsghdr {
	return (*unix.Cmsghdr)(unsafe.Add(unsafe.Pointer(c), at))
}

func (c *control) value(at int) unsafe.Pointer {
	return unsafe.Add(unsafe.Pointer(c), at+unix.CmsgLen(0))
}

// put writes the header of a message at an offset, and returns a pointer for its value of
// size bytes and the offset behind it.
func (c *control) put(at int, level, kind int32, size int) (value unsafe.Pointer, next int) {
	h := c.header(at)
	h.Level = level
	h.Type = kind
	h.SetLen(unix.CmsgLen(size))
	return c.value(at), at + unix.CmsgSpace(size)
}

// putSegment writes UDP_SEGMENT at the start and returns the offset behind it.
func (c *control) putSegment(size int) (next int) {
	v, next := c.put(0, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
	*(*uint16)(v) = uint16(size)
	return next
}

func (c *control) segment() int { return int(*(*uint16)(c.value(0))) }

// putLocal writes at an offset that the socket, which is of family, sends from ip, and
// returns the offset behind it. It writes nothing if a socket of family cannot do that.
func (c *control) putLocal(at int, ip netip.Addr, family uint16) (next int) {
	switch {
	case family == unix.AF_INET6:
		v, next := c.put(at, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		*(*unix.Inet6Pktinfo)(v) = unix.Inet6Pktinfo{Addr: ip.As16()} // maps IPv4, as the kernel wants it
		return next
	case ip.Is4() || ip.Is4In6():
		v, next := c.put(at, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		*(*unix.Inet4Pktinfo)(v) = unix.Inet4Pktinfo{Spec_dst: ip.Unmap().As4()}
		return next
	}
	return at
}

// attach gives h the control messages from one offset to another.
func (c *control) attach(h *unix.Msghdr, from, to int) {
	h.Control = nil
	if from < to {
		h.Control = (*byte)(unsafe.Pointer(c.header(from)))
	}
	h.SetControllen(to - from)
}

// read parses the first n bytes. It returns the segment size in UDP_GRO, 0 if there is
// none, and the address of ours that the datagram was sent to, if it is given.
func (c *control) read(n int) (gro int, local netip.Addr) {
	for at := 0; at+unix.CmsgLen(0) <= n; {
		h := c.header(at)
		if uint64(h.Len) < uint64(unix.CmsgLen(0)) || uint64(h.Len) > uint64(n-at) {
			break
		}
		size := int(h.Len) - unix.CmsgLen(0)
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && size >= 4:
			gro = int(*(*int32)(c.value(at)))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && size >= unix.SizeofInet6Pktinfo:
			local = netip.AddrFrom16((*unix.Inet6Pktinfo)(c.value(at)).Addr).Unmap()
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && size >= unix.SizeofInet4Pktinfo:
			local = netip.AddrFrom4((*unix.Inet4Pktinfo)(c.value(at)).Spec_dst)
		}
		at += unix.CmsgSpace(size)
	}
	if local.IsMulticast() {
		return gro, netip.Addr{} // nothing can be sent from there
	}
	return gro, local
}
