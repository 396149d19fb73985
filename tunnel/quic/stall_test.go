package quic

import (
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLongestStalledStreamIsReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams, small = maxStalled + 3, 3
		rs := newReaders()
		var all []*reader
		var mu sync.Mutex
		var reset []int
		for i := range streams + small {
			r := &reader{}
			r.reset = func() {
				mu.Lock()
				reset = append(reset, i)
				mu.Unlock()
				r.read(rs.now(), 0, io.ErrClosedPipe)
			}
			rs.add(r)
			n := stalledBytes + 1
			if i < small {
				n = stalledBytes / 2 // these have brought less and count for nothing
			}
			r.reads()
			r.read(rs.now(), n, nil)
			all = append(all, r)
			time.Sleep(time.Millisecond)
		}
		// These two hold nothing: one waits for more, one has ended.
		last, ended := all[len(all)-1], all[len(all)-2]
		last.reads()
		ended.reads()
		ended.read(rs.now(), 0, io.EOF)

		time.Sleep(stalledAfter - time.Second)
		synctest.Wait()
		mu.Lock()
		if reset != nil {
			t.Errorf("%v are reset too early", reset)
		}
		mu.Unlock()
		time.Sleep(stalledAfter)
		synctest.Wait()
		mu.Lock()
		if want := []int{small}; !slices.Equal(reset, want) {
			t.Errorf("%v are reset, want %v", reset, want)
		}
		mu.Unlock()
		for _, r := range all {
			rs.remove(r)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		rs.mu.Lock()
		defer rs.mu.Unlock()
		if len(rs.all) != 0 || rs.check != nil {
			t.Errorf("%d streams are still known, the check runs: %v", len(rs.all), rs.check != nil)
		}
	})
}
