package tcp

import (
	"cmp"
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"wmproxy/tunnel/carrier"
)

// opening is a request to openStreams.
type opening struct {
	settled atomic.Bool       // by whoever comes first: the stream, or the caller's ctx
	stream  chan *chunkStream // takes one; nil where the carrier ended
}

func (c *connection) OpenStream(ctx context.Context) (carrier.Stream, error) {
	if err := cmp.Or(c.Err(), ctx.Err()); err != nil {
		return nil, err
	}
	select {
	case c.slots <- struct{}{}:
	default:
		return nil, carrier.ErrStreamLimit
	}
	o := &opening{stream: make(chan *chunkStream, 1)}
	select {
	case c.openings <- o:
	case <-ctx.Done():
		<-c.slots
		return nil, ctx.Err()
	case <-c.ended:
		<-c.slots
		return nil, c.err
	}
	select {
	case s := <-o.stream:
		return c.opened(s)
	case <-ctx.Done():
		if o.settled.Swap(true) {
			return c.opened(<-o.stream)
		}
		return nil, ctx.Err()
	}
}

func (c *connection) opened(s *chunkStream) (carrier.Stream, error) {
	if s == nil {
		<-c.ended
		return nil, c.err
	}
	return s, nil
}

// openStreams opens streams one at a time, so that their ids reach the peer in
// rising order, and away from callers, because yamux may wait longer than they do.
func (c *connection) openStreams() {
	for {
		select {
		case <-c.ended:
			return
		case o := <-c.openings:
			y, err := c.y.OpenStream()
			if err != nil {
				<-c.slots
				c.ending(err)
				o.stream <- nil
				return
			}
			s := newChunkStream(c, y, true)
			c.mu.Lock()
			c.streams[y.StreamID()] = s
			c.lastOpened = y.StreamID()
			c.mu.Unlock()
			if o.settled.Swap(true) {
				s.Reset(carrier.CodeNone)
				continue
			}
			o.stream <- s
		}
	}
}

func (c *connection) AcceptStream(ctx context.Context) (carrier.Stream, error) {
	for {
		y, err := c.y.AcceptStreamWithContext(ctx)
		if err != nil {
			if ctx.Err() != nil && !c.y.IsClosed() {
				return nil, ctx.Err()
			}
			return nil, c.ending(err)
		}
		s, tooMany, err := c.admit(y)
		if err != nil {
			return nil, c.violation(err)
		}
		if tooMany {
			s.Reset(carrier.CodeLimit)
			continue
		}
		return s, nil
	}
}

// admit makes a Stream of one that the peer opened.
func (c *connection) admit(y *yamux.Stream) (s *chunkStream, tooMany bool, err error) {
	held := c.y.NumStreams()
	id := y.StreamID()
	s = newChunkStream(c, y, false)

	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.peerID(id) || id <= c.lastAccepted:
		return nil, false, errors.New("a stream number out of order")
	case held > maxHeld:
		return nil, false, errors.New("too many streams")
	}
	c.lastAccepted = id
	c.streams[id] = s
	c.accepted++
	if code, ok := c.early[id]; ok {
		delete(c.early, id)
		s.end(&carrier.ResetError{Code: code})
	}
	return s, c.accepted > maxStreams, nil
}

// release forgets a stream whose user is done with it. It does not wait.
func (c *connection) release(s *chunkStream, code carrier.ErrorCode, tell bool) {
	c.mu.Lock()
	delete(c.streams, s.y.StreamID())
	if s.ours {
		<-c.slots
	} else {
		c.accepted--
	}
	c.releases = append(c.releases, release{y: s.y, code: code, tell: tell})
	c.mu.Unlock()
	c.finished.Wake()
}

// releaseStreams tells the peer of abandoned streams and closes what is released.
// A stream is gone once both ends have closed it.
func (c *connection) releaseStreams() {
	var batch []release
	var told []byte
	scrap := make([]byte, 4<<10)
	for {
		select {
		case <-c.ended:
			return
		case <-c.finished:
		}
		c.mu.Lock()
		batch, c.releases = c.releases, batch[:0]
		c.mu.Unlock()
		for i, r := range batch {
			if r.tell {
				told = appendSignal(told[:0], signal{kind: signalReset, stream: r.y.StreamID(), code: r.code})
				if _, err := c.signals.Write(told); err != nil {
					c.ending(err)
					return
				}
			}
			r.y.Close()
			c.readOut(r.y, scrap)
			batch[i] = release{}
		}
	}
}

// readOut reads what a released stream still holds; arriving sees to it that no more comes.
func (c *connection) readOut(y *yamux.Stream, scrap []byte) {
	y.SetReadDeadline(carrier.LongAgo)
	for {
		n, _ := y.Read(scrap)
		c.unread.Add(-int64(n))
		if n == 0 {
			y.Shrink()
			return
		}
	}
}

// arriving counts n bytes of a stream that are about to arrive and reports whether to keep them. It
// drops them if the stream's user has closed it; yamux keeps that stream until the peer closes it too.
func (c *connection) arriving(id, n uint32) (keep bool) {
	if id%2 == 1 && id <= lastOwn {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[id]
	if s == nil {
		last := c.lastOpened
		if c.peerID(id) {
			last = c.lastAccepted
		}
		if id > last {
			c.unread.Add(int64(n))
		}
		return id > last
	}
	if s.wasReset() != nil {
		return false
	}
	s.arrived.Add(uint64(n))
	c.unread.Add(int64(n))
	return true
}

// freeReceived frees the buffers that streams have read empty, every receivedTime while some are
// read. A stream that is not empty then will be read later.
func (c *connection) freeReceived() {
	for {
		select {
		case <-c.ended:
			return
		case <-c.read:
		}
		rest := time.NewTimer(receivedTime)
		select {
		case <-c.ended:
			rest.Stop()
			return
		case <-rest.C:
		}
		c.freeNow()
	}
}

func (c *connection) freeNow() {
	for _, y := range c.haveRead() {
		y.Shrink() // waits for a frame that is just arriving
	}
}

// haveRead is the streams that have been read since the last call.
func (c *connection) haveRead() (all []*yamux.Stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		if s.read.Swap(false) {
			all = append(all, s.y)
		}
	}
	return all
}
