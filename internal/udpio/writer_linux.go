package udpio

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	writeBatch  = 64  // messages to the system in one sendmmsg
	writeIovs   = 512 // pieces of payload in one sendmmsg
	maxSegments = 64  // UDP_MAX_SEGMENTS of the kernels before 6.9
)

// writer holds the headers of one Write. Sockets hold none: they borrow one for the
// length of a call.
type writer struct {
	hdrs  [writeBatch]unix.Mmsghdr
	names [writeBatch]sockaddr
	ctrls [writeBatch]control
	runs  [writeBatch]run
	iovs  [writeIovs]unix.Iovec
	n     int // headers in use
	iov   int // iovecs in use

	sent int        // messages that the system took in this Write
	err  unix.Errno // of the first that it refused
}

// run is the messages behind one header, ms[from:from+count], in how many pieces of
// payload the first of them lies, and the offsets in its control at which the message with
// the address to send from begins and ends.
type run struct{ from, count, pieces, local, end int }

var writers = sync.Pool{New: func() any { return new(writer) }}

func (w *writer) reset() {
	clear(w.iovs[:w.iov]) // a pooled writer must not hold on to payloads
	w.n, w.iov = 0, 0
}

// fill makes headers of ms from index from on, until it ends, the scratch is
// full, or a message is one that cannot be sent (stop is then its error, and
// next its index).
func (w *writer) fill(ms []Message, from int, family uint16, maxSegment int) (next int, stop unix.Errno) {
	w.reset()
	for next = from; next < len(ms) && w.n < writeBatch && w.iov+2 <= writeIovs; {
		m := &ms[next]
		// Asked here, so that EINVAL and EMSGSIZE from a run mean segmentation.
		if m.tooLarge() {
			return next, unix.EMSGSIZE
		}
		if m.Addr.Port() == 0 {
			return next, unix.EINVAL
		}
		h := &w.hdrs[w.n].Hdr
		if w.n > 0 && m.Addr == ms[next-1].Addr {
			h.Name, h.Namelen = w.hdrs[w.n-1].Hdr.Name, w.hdrs[w.n-1].Hdr.Namelen
		} else {
			sa := &w.names[w.n]
			if h.Namelen = sa.put(m.Addr, family); h.Namelen == 0 {
				return next, unix.EAFNOSUPPORT
			}
			h.Name = (*byte)(unsafe.Pointer(sa))
		}
		first := w.iov
		count := w.gather(ms[next:], maxSegment)
		h.Iov = &w.iovs[first]
		h.SetIovlen(w.iov - first)
		r := run{from: next, count: count, pieces: min(len(m.Head), 1) + min(len(m.Body), 1)}
		if count > 1 {
			r.local = w.ctrls[w.n].putSegment(m.Len())
		}
		r.end = r.local
		if m.Local.IsValid() {
			r.end = w.ctrls[w.n].putLocal(r.local, m.Local, family)
		}
		w.ctrls[w.n].attach(h, 0, r.end)
		w.runs[w.n] = r
		w.n++
		next += count
	}
	return next, 0
}

// gather adds the pieces of ms[0], and of those after it that may share its
// header: same destination, same source, same size (a shorter one ends the run), within
// what one segmented send may carry. It returns how many it took.
func (w *writer) gather(ms []Message, maxSegment int) int {
	size := ms[0].Len()
	w.piece(ms[0].Head)
	w.piece(ms[0].Body)
	if size == 0 || size > maxSegment {
		return 1
	}
	total, count := size, 1
	for count < len(ms) && count < maxSegments && w.iov+2 <= writeIovs {
		m := &ms[count]
		n := m.Len()
		if n == 0 || n > size || total+n > MaxDatagram || m.Addr != ms[0].Addr || m.Local != ms[0].Local {
			break
		}
		w.piece(m.Head)
		w.piece(m.Body)
		total += n
		count++
		if n < size {
			break
		}
	}
	return count
}

func (w *writer) piece(b []byte) {
	if len(b) > 0 {
		w.iovs[w.iov].Base = unsafe.SliceData(b)
		w.iovs[w.iov].SetLen(len(b))
		w.iov++
	}
}

// write sends ms in order. maxSegment is the largest segment for which the
// socket still believes in UDP_SEGMENT.
func (w *writer) write(fd int, family uint16, maxSegment *atomic.Int32, ms []Message) {
	w.sent, w.err = 0, 0
	for at := 0; at < len(ms); {
		next, stop := w.fill(ms, at, family, int(maxSegment.Load()))
		at = w.flush(fd, maxSegment, next)
		if at < 0 {
			break
		}
		if at == next && stop != 0 {
			w.failed(stop)
			at++
		}
	}
	w.reset()
}

func (w *writer) failed(errno unix.Errno) {
	if w.err == 0 {
		w.err = errno
	}
}

// flush sends what fill prepared from ms[..end]. It returns the index to go on
// from, which is end unless the system refused to segment a run, and -1 when
// the socket's buffer is full.
func (w *writer) flush(fd int, maxSegment *atomic.Int32, end int) int {
	for i := 0; i < w.n; {
		n, errno := sendmmsg(fd, w.hdrs[i:w.n])
		r := w.runs[i]
		switch {
		case errno == unix.EINTR:
			continue
		case errno == 0:
			for _, r := range w.runs[i : i+n] {
				w.sent += r.count
			}
			i += n
			continue
		case r.count > 1 && segmentationRefused(errno):
			refused := errno
			// Plain, the first of the run tells whether segmentation was at fault.
			if errno = w.sendFirst(fd, i); errno == 0 {
				w.sent++
				lower(maxSegment, refused, w.ctrls[i].segment())
				return r.from + 1
			}
		}
		if errno == unix.EAGAIN || errno == unix.ENOBUFS {
			return -1
		}
		w.failed(errno)
		i++
	}
	return end
}

// sendFirst sends the first datagram of the run behind header i by itself.
func (w *writer) sendFirst(fd, i int) unix.Errno {
	h := &w.hdrs[i].Hdr
	w.ctrls[i].attach(h, w.runs[i].local, w.runs[i].end)
	h.SetIovlen(w.runs[i].pieces)
	_, errno := sendmmsg(fd, w.hdrs[i:i+1])
	return errno
}

// segmentationRefused reports whether errno can mean UDP_SEGMENT itself: a device
// without checksum offload (EIO), a segment above the route's MTU (EINVAL,
// since Linux 6.13 EMSGSIZE), a socket or path that cannot (EINVAL, EOPNOTSUPP).
func segmentationRefused(errno unix.Errno) bool {
	return errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE || errno == unix.EOPNOTSUPP
}

// Payloads that fit the usual path, and any IPv6 path, without IP fragments.
const (
	segmentEthernet = 1500 - 28
	segmentAnyPath  = 1280 - 48
)

// lower latches segmentation after a refusal: first to sizes that an ordinary
// path carries, if that can have been the reason, then off.
func lower(maxSegment *atomic.Int32, errno unix.Errno, size int) {
	to := 0
	if errno == unix.EINVAL || errno == unix.EMSGSIZE {
		switch {
		case size > segmentEthernet:
			to = segmentEthernet
		case size > segmentAnyPath:
			to = segmentAnyPath
		}
	}
	for old := maxSegment.Load(); old > int32(to); old = maxSegment.Load() {
		if maxSegment.CompareAndSwap(old, int32(to)) {
			return
		}
	}
}
