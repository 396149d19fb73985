package tcp

import (
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"time"
)

// coalescer gathers the many small writes of yamux, which writes header and body
// apart, into few large ones: what is written while a write is under way goes
// out together with the next. No timer: an idle connection sends at once. A large
// write goes out as it is, behind what waits, by whoever writes it.
type coalescer struct {
	net.Conn                 // TLS
	records  *recordConn     // what it writes to
	raw      net.Conn        // the TCP connection under both, to cut it short
	closing  func()          // if set, Close calls it first
	notSent  func(busy bool) // tells raw whether a stream fills it
	frames   frameFilter     // of what it reads; belongs to Read

	mu       sync.Mutex
	work     sync.Cond     // for the flusher: buf has data, a write has ended, or closed
	room     sync.Cond     // for writers: buf has room, a write has ended, or err, or closed
	limit    coalesceLimit // of buf
	wanted   int           // what a stream would write at once: the most since the last write, in bytes
	buf      []byte        // grows to what is needed
	flight   []byte        // what is being written; swaps places with buf
	writing  bool          // a write is under way
	promised bool          // buf ends with the head of a frame whose content comes next
	busy     bool          // notSent was told so: limit is more than coalesceQuiet
	err      error         // sticks
	closed   bool
	readErr  error // the first
	flusher  sync.WaitGroup
}

func newCoalescer(conn net.Conn, records *recordConn, raw net.Conn) *coalescer {
	c := &coalescer{Conn: conn, records: records, raw: raw, notSent: notSentSetter(raw), limit: coalesceLimit{bytes: coalesceQuiet}}
	c.work.L, c.room.L = &c.mu, &c.mu
	c.frames.arriving = func(_, _ uint32) bool { return true }
	c.flusher.Go(c.flush)
	return c
}

func (c *coalescer) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) >= coalesceLarge {
		return c.writeNow(p)
	}
	promising := !c.promised && promises(p) // what follows a promise is the content
	c.promised = false
	written := 0
	for len(p) > 0 {
		for c.err == nil && !c.closed && len(c.buf) >= c.limit.bytes {
			if !c.writing {
				c.work.Signal() // after a promise nobody has
			}
			c.room.Wait()
		}
		if c.err != nil {
			return written, c.err
		}
		if c.closed {
			return written, net.ErrClosed
		}
		n := min(len(p), c.limit.bytes-len(c.buf))
		c.buf = append(c.buf, p[:n]...)
		p = p[n:]
		written += n
		c.promised = promising && len(p) == 0
		if !c.writing && !c.promised {
			c.work.Signal()
		}
	}
	return written, nil
}

// promises says whether p is the head of a yamux frame whose content yamux writes next.
func promises(p []byte) bool {
	return len(p) == yamuxHead && p[1] == yamuxTypeData && binary.BigEndian.Uint32(p[8:]) > 0
}

func (c *coalescer) Read(p []byte) (int, error) {
	n, err := c.frames.read(c.Conn, p)
	if err != nil {
		c.mu.Lock()
		if c.readErr == nil && !c.closed {
			c.readErr = err
		}
		c.mu.Unlock()
	}
	return n, err
}

// cause is the first error of the connection, nil where it had none before Close.
func (c *coalescer) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return c.readErr
}

// A coalesceLimit is how much may wait at a time, in bytes: coalesceLeast to coalesceBuffer.
type coalesceLimit struct {
	bytes int
	calm  int // writes in a row without a stream that wants more than coalesceQuiet
}

// wrote adapts it to a write of n bytes, before which a stream wanted to write so many at once.
// It returns true once when no stream has wanted much for a while.
func (l *coalesceLimit) wrote(n int, took time.Duration, wanted int) (calm bool) {
	if wanted > coalesceQuiet {
		l.calm = 0
	} else {
		l.calm = min(l.calm+1, coalesceCalm+1)
	}
	switch {
	case took > coalesceDelay:
		l.bytes = min(max(int(int64(n)*int64(coalesceDelay)/int64(took)), coalesceLeast), coalesceBuffer)
	case l.bytes < coalesceQuiet:
		l.bytes = min(2*l.bytes, coalesceQuiet)
	case wanted > l.bytes:
		l.bytes = min(2*l.bytes, coalesceBuffer)
	case l.calm >= coalesceCalm:
		l.bytes = coalesceQuiet
	}
	return l.calm == coalesceCalm
}

// fit returns how many of n bytes of a stream it takes at once at present, and takes more before
// long if that is not all.
func (c *coalescer) fit(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = max(c.wanted, n)
	return min(n, c.limit.bytes)
}

// bound is how much it takes at once at present, in bytes.
func (c *coalescer) bound() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.limit.bytes
}

// writeNow writes what waits and then p, most of it without a copy, once no write is under way.
// c.mu is held, but not while it waits or writes.
func (c *coalescer) writeNow(p []byte) (int, error) {
	for {
		for c.writing && c.err == nil && !c.closed {
			c.room.Wait()
		}
		if c.err != nil {
			return 0, c.err
		}
		if c.closed {
			return 0, net.ErrClosed
		}
		c.promised = false // kept
		if len(c.buf) == 0 || len(c.buf)+len(p) <= coalesceBuffer {
			break
		}
		c.write(nil)
	}
	// The first record has what waits and as much of p as fills it.
	first := min(len(p), -len(c.buf)&(tlsRecord-1))
	c.buf = append(c.buf, p[:first]...)
	c.write(p[first:])
	if c.err != nil {
		return 0, c.err
	}
	return len(p), nil
}

// flush writes what waits, until it is closed and nothing is left or can be written.
func (c *coalescer) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for c.writing || (len(c.buf) == 0 || c.promised) && !c.closed {
			c.work.Wait()
		}
		if len(c.buf) == 0 || c.err != nil {
			return
		}
		c.write(nil)
	}
}

// write writes what waits, and behind it p. c.mu is held, but not while it writes.
func (c *coalescer) write(p []byte) {
	c.buf, c.flight = c.flight[:0], c.buf
	c.writing = true
	wanted := c.wanted
	c.wanted = 0
	c.room.Broadcast()
	c.mu.Unlock()
	began := time.Now()
	err := c.records.together(func() error {
		for _, b := range [...][]byte{c.flight, p} {
			if len(b) == 0 {
				continue
			}
			if _, err := c.Conn.Write(b); err != nil {
				return err
			}
		}
		return nil
	})
	took := time.Since(began)
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	if c.limit.wrote(len(c.flight)+len(p), took, wanted) {
		c.buf, c.flight = slices.Clone(c.buf), nil
		c.mu.Unlock()
		c.records.free() // it may have to wait for what the reader of TLS writes
		c.mu.Lock()
	}
	if busy := c.limit.bytes > coalesceQuiet; busy != c.busy {
		c.busy = busy
		c.notSent(busy)
	}
	c.writing = false
	c.room.Broadcast()
	c.work.Signal()
}

// Close sends what is there, within closeBound, then closes the connection,
// which unblocks Read. Further calls wait for the first and do nothing.
func (c *coalescer) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		c.flusher.Wait()
		return nil
	}
	c.closed = true
	c.work.Signal()
	c.room.Broadcast()
	c.mu.Unlock()
	if c.closing != nil {
		c.closing()
	}

	// tls.Conn.Close alone may wait 5 s for a stalled peer to take its alert.
	cut := time.AfterFunc(closeBound, func() { c.raw.Close() })
	defer cut.Stop()
	c.flusher.Wait()
	return c.Conn.Close()
}
