package udpio

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	readBatch = 64 // datagrams, or trains that UDP_GRO made of them, in one recvmmsg
	// readSize is the largest that one recvmmsg entry can be.
	readSize = 65535
	// readStride staggers the buffers by cache lines: at equal page offsets, the
	// first lines of all of them would compete for a few places in the cache.
	readStride = readSize + 1 + 192
)

// reader holds the buffers and headers that one event loop reads with. The buffers are outside the Go heap:
// 4 MiB of addresses of which only pages that datagrams have touched take memory.
type reader struct {
	buf   []byte // nil until the first read
	hdrs  [readBatch]unix.Mmsghdr
	iovs  [readBatch]unix.Iovec
	names [readBatch]sockaddr
	ctrls [readBatch]control
	used  int       // headers that the last read wrote into
	ms    []Message // grows to at most 128 for each entry, the longest train of Linux
}

// regions is the buffers of loops that ended, for those to come. They are never
// unmapped: a Message that someone kept by mistake would then point at nothing,
// or into memory that the Go heap has taken over, and end the process.
var regions struct {
	mu   sync.Mutex
	free [][]byte
}

func takeRegion() ([]byte, error) {
	regions.mu.Lock()
	defer regions.mu.Unlock()
	if n := len(regions.free); n > 0 {
		buf := regions.free[n-1]
		regions.free = regions.free[:n-1]
		return buf, nil
	}
	buf, err := unix.Mmap(-1, 0, readBatch*readStride, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	// A huge page would make 2 MiB resident for the first datagram.
	_ = unix.Madvise(buf, unix.MADV_NOHUGEPAGE)
	return buf, nil
}

// open takes buffers and points the headers at them.
func (r *reader) open() error {
	buf, err := takeRegion()
	if err != nil {
		return err
	}
	r.buf = buf
	for i := range r.hdrs {
		h := &r.hdrs[i].Hdr
		r.iovs[i].Base = &buf[i*readStride]
		r.iovs[i].SetLen(readSize)
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Control = (*byte)(unsafe.Pointer(&r.ctrls[i]))
	}
	r.used = readBatch
	return nil
}

// read reads up to readBatch entries of fd into r.ms and returns how many
// entries there were.
func (r *reader) read(fd int) (int, unix.Errno) {
	if r.buf == nil {
		if r.open() != nil {
			return 0, unix.ENOMEM
		}
	}
	for i := range r.used {
		h := &r.hdrs[i].Hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(int(unsafe.Sizeof(r.ctrls[i])))
	}
	r.used = 0
	n, errno := recvmmsg(fd, r.hdrs[:])
	if errno != 0 {
		return 0, errno
	}
	r.used = n
	r.ms = r.ms[:0]
	for i := range n {
		r.add(i)
	}
	return n, 0
}

// add appends the datagrams of entry i to ms.
func (r *reader) add(i int) {
	h := &r.hdrs[i]
	if h.Hdr.Flags&unix.MSG_TRUNC != 0 {
		return // larger than UDP allows: not a datagram that anyone sent
	}
	body := r.buf[i*readStride:][:h.Len:h.Len]
	addr := r.names[i].get()
	size, local := r.ctrls[i].read(int(h.Hdr.Controllen))
	if size <= 0 {
		size = len(body)
	}
	for len(body) > size {
		r.ms = append(r.ms, Message{Body: body[:size:size], Addr: addr, Local: local})
		body = body[size:]
	}
	r.ms = append(r.ms, Message{Body: body, Addr: addr, Local: local})
}

// rest gives the memory back, keeping the addresses.
func (r *reader) rest() {
	if r.buf != nil {
		_ = unix.Madvise(r.buf, unix.MADV_DONTNEED)
	}
	r.ms = nil
}

func (r *reader) close() {
	if r.buf == nil {
		return
	}
	r.rest()
	regions.mu.Lock()
	defer regions.mu.Unlock()
	regions.free = append(regions.free, r.buf)
	r.buf = nil
}
