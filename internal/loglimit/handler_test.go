package loglimit

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/testmain"
)

func TestMain(m *testing.M) { testmain.Run(m) }

// lineWriter collects lines.
type lineWriter struct {
	mu    sync.Mutex
	lines bytes.Buffer
}

func (b *lineWriter) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines.Write(p)
}

// take returns the lines since the last call.
func (b *lineWriter) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	lines := slices.Collect(strings.Lines(b.lines.String()))
	b.lines.Reset()
	return lines
}

func newLog(level slog.Level) (*slog.Logger, *Handler, *lineWriter) {
	b := new(lineWriter)
	h := New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	return slog.New(h), h, b
}

// refuse logs n lines of one kind.
//
//go:noinline
func refuse(log *slog.Logger, n int, attrs ...any) {
	for range n {
		log.Warn("refused", attrs...)
	}
}

func TestLinesBeyondTheBoundAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _, b := newLog(slog.LevelInfo)
		refuse(log, 12_317, "user", "mallory")
		if diff := cmp.Diff(slices.Repeat([]string{"level=WARN msg=refused user=mallory\n"}, maxWarn), b.take()); diff != "" {
			t.Errorf("at once (-want +got):\n%s", diff)
		}
		time.Sleep(interval)
		synctest.Wait()
		if diff := cmp.Diff([]string{"level=WARN msg=refused user=mallory left_out=12311\n"}, b.take()); diff != "" {
			t.Errorf("at the end of the interval (-want +got):\n%s", diff)
		}
		time.Sleep(interval)
		refuse(log, maxWarn+1, "user", "mallory")
		if got := len(b.take()); got != maxWarn {
			t.Errorf("%d lines in the next interval, want %d", got, maxWarn)
		}
		time.Sleep(interval)
		synctest.Wait()
		if diff := cmp.Diff([]string{"level=WARN msg=refused user=mallory\n"}, b.take()); diff != "" {
			t.Errorf("one line left out (-want +got):\n%s", diff)
		}
	})
}

func TestBoundIsPerIntervalUserKindAndLevel(t *testing.T) {
	for _, test := range []struct {
		name  string
		lines func(log *slog.Logger)
		want  int
	}{
		{"warnings", func(log *slog.Logger) { refuse(log, 100) }, maxWarn},
		{"information", func(log *slog.Logger) {
			for range 100 {
				log.Info("ended")
			}
		}, maxInfo},
		{"debugging", func(log *slog.Logger) {
			for range 100 {
				log.Debug("read")
			}
		}, 100},
		{"two users", func(log *slog.Logger) {
			refuse(log, 100, "user", "a")
			refuse(log, 100, "user", "b")
		}, 2 * maxWarn},
		{"a user with two addresses", func(log *slog.Logger) {
			refuse(log, 100, "user", "a", "client", "192.0.2.1:1")
			refuse(log, 100, "client", "198.51.100.1:1", "user", "a")
		}, maxWarn},
		{"the user of a logger", func(log *slog.Logger) {
			refuse(log.With("user", "a"), 100)
			refuse(log.With("user", "b"), 100)
			refuse(log, 100, "user", "b")
		}, 2 * maxWarn},
		{"two servers", func(log *slog.Logger) {
			refuse(log.With("server", "one.example:8090"), 100)
			refuse(log.With("server", "two.example:8090"), 100)
		}, 2 * maxWarn},
		{"one stranger with many ports", func(log *slog.Logger) {
			for port := range uint16(100) {
				refuse(log, 1, "user", "", "client", netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port))
				refuse(log, 1, "client", fmt.Sprintf("192.0.2.1:%d", port))
			}
		}, maxWarn},
		{"two kinds", func(log *slog.Logger) {
			refuse(log, 100)
			for range 100 {
				log.Warn("refused")
			}
		}, 2 * maxWarn},
		{"one kind with many messages", func(log *slog.Logger) {
			for i := range 100 {
				log.Warn(fmt.Sprintf("refused for the %dth time", i))
			}
		}, maxWarn},
		{"two intervals", func(log *slog.Logger) {
			refuse(log, maxWarn)
			time.Sleep(interval)
			refuse(log, maxWarn)
		}, 2 * maxWarn},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, h, b := newLog(slog.LevelDebug)
				test.lines(log)
				if got := len(b.take()); got != test.want {
					t.Errorf("%d lines, want %d", got, test.want)
				}
				h.Flush()
			})
		})
	}
}

func TestStrangersOfManyNetworksAreBounded(t *testing.T) {
	log, h, b := newLog(slog.LevelInfo)
	for i := range 10_000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})
		refuse(log, 1, "client", netip.AddrPortFrom(a, 1))
	}
	if got := len(b.take()); got < 2*maxWarn || got > strangers*maxWarn {
		t.Errorf("%d lines, want %d at most", got, strangers*maxWarn)
	}
	h.Flush()
	if got := len(b.take()); got < 2 || got > strangers {
		t.Errorf("%d lines at the end, want %d at most", got, strangers)
	}
}

func TestCountsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, h, b := newLog(slog.LevelInfo)
		for i := range 2 * maxCounts {
			refuse(log, 1, "user", fmt.Sprint(i))
		}
		if got := len(b.take()); got != maxCounts+maxWarn {
			t.Errorf("%d lines, want one for each of %d users and %d for the others", got, maxCounts, maxWarn)
		}
		time.Sleep(interval)
		refuse(log, 1, "user", "new")
		if got := len(h.counts.of); got > 2 {
			t.Errorf("%d counts remain after their interval", got)
		}
		h.Flush()
	})
}

func TestFlushLogsLinesLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, h, b := newLog(slog.LevelInfo)
		refuse(log, 100, "user", "a")
		b.take()
		h.Flush()
		h.Flush()
		time.Sleep(2 * interval)
		if diff := cmp.Diff([]string{fmt.Sprintf("level=WARN msg=refused user=a left_out=%d\n", 99-maxWarn)}, b.take()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// Some lines are logged for each refused datagram.
func TestLeftOutLineDoesNotAllocate(t *testing.T) {
	log, h, _ := newLog(slog.LevelInfo)
	line := func() {
		log.LogAttrs(context.Background(), slog.LevelWarn, "refused", slog.String("user", "mallory"), slog.Any("error", context.Canceled))
	}
	for range 2 * maxWarn {
		line()
	}
	if n := testing.AllocsPerRun(100, line); n != 0 {
		t.Errorf("%v allocations", n)
	}
	h.Flush()
}
