package udpio

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below never sleep, so they need not tell the scheduler (RawSyscall).
// Telling it costs more than it seems: the first such call after the process was
// idle wakes the runtime's monitor thread, which then looks every 20 µs until the
// process is idle again. At 5,000 datagrams/s that was half of all context
// switches. Only a large batch, which may take 100 µs, is told, so that it does
// not hold up others and the garbage collector.
const toldBatch = 16

func recvmmsg(fd int, hdrs []unix.Mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd),
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
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(hdrs))), uintptr(len(hdrs)), flags, 0, 0)
	return int(n), errno
}

func sendmsg(fd int, h *unix.Msghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd),
		uintptr(unsafe.Pointer(h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return int(n), errno
}

// control is room for one control message with an integer of up to 4 bytes:
//
//	length 8 or 4 · level 4 · type 4 · value 2 (UDP_SEGMENT) or 4 (UDP_GRO) · padding
type control [3]uint64

func (c *control) header() *unix.Cmsghdr { return (*unix.Cmsghdr)(unsafe.Pointer(c)) }

func (c *control) value() unsafe.Pointer {
	return unsafe.Add(unsafe.Pointer(c), unix.CmsgLen(0))
}

// putSegment writes UDP_SEGMENT and returns the length for msg_controllen.
func (c *control) putSegment(size int) int {
	h := c.header()
	h.Level = unix.IPPROTO_UDP
	h.Type = unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(c.value()) = uint16(size)
	return unix.CmsgSpace(2)
}

func (c *control) segment() int { return int(*(*uint16)(c.value())) }

// groSize is the segment size in UDP_GRO, 0 if n bytes of control hold none.
func (c *control) groSize(n int) int {
	h := c.header()
	if n < unix.CmsgLen(4) || h.Level != unix.IPPROTO_UDP || h.Type != unix.UDP_GRO {
		return 0
	}
	return int(*(*int32)(c.value()))
}
