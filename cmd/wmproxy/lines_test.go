package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// countedWriter counts the calls.
type countedWriter struct {
	bytes.Buffer
	calls int
}

func (w *countedWriter) Write(p []byte) (int, error) {
	w.calls++
	return w.Buffer.Write(p)
}

func TestALineAloneIsWrittenAtOnceAndManyTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out countedWriter
		l := &lines{w: &out}
		say := func(s string) {
			if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
		}
		say("one\n")
		if out.calls != 1 {
			t.Errorf("%d writes after a line alone, want 1", out.calls)
		}
		want := "one\n"
		for range 100 {
			say("more\n")
			want += "more\n"
		}
		if out.calls != 1 {
			t.Errorf("%d writes, want that the lines wait", out.calls)
		}
		time.Sleep(lineDelay)
		synctest.Wait()
		if out.calls != 2 || out.String() != want {
			t.Errorf("%d writes, want 2 in all, with every line in order", out.calls)
		}
		time.Sleep(lineDelay)
		say("later\n")
		if out.calls != 3 {
			t.Errorf("%d writes, want that a line after a pause does not wait", out.calls)
		}
		say("last\n")
		l.Flush()
		if want += "later\nlast\n"; out.calls != 4 || out.String() != want {
			t.Errorf("%d writes, want 4 in all once flushed", out.calls)
		}
		long := strings.Repeat("x", lineBuffer)
		say(long)
		if want += long; out.String() != want {
			t.Error("more waits than there is room for")
		}
	})
}
