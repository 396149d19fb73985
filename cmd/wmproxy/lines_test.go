package main

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// countedWriter counts the calls.
type countedWriter struct {
	mu    sync.Mutex
	all   bytes.Buffer
	calls int
}

func (w *countedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls++
	return w.all.Write(p)
}

func (w *countedWriter) got() (calls int, all string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls, w.all.String()
}

func TestALineAloneIsWrittenAtOnceAndManyTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out countedWriter
		l := &lines{w: &out, delay: lineDelay}
		say := func(s string) {
			if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
		}
		expect := func(what string, calls int, all string) {
			t.Helper()
			synctest.Wait()
			if n, got := out.got(); n != calls || got != all {
				t.Errorf("%s: %d writes of %d bytes, want %d of %d", what, n, len(got), calls, len(all))
			}
		}
		say("one\n")
		expect("a line alone", 1, "one\n")
		want := "one\n"
		for range 100 {
			say("more\n")
			want += "more\n"
		}
		expect("many lines wait", 1, "one\n")
		time.Sleep(lineDelay)
		synctest.Wait()
		expect("many lines", 2, want)
		time.Sleep(lineDelay)
		say("later\n")
		want += "later\n"
		expect("a line after a pause", 3, want)
		say("last\n")
		l.Flush()
		want += "last\n"
		expect("flushed", 4, want)
	})
}

func TestASlowReaderOfLinesStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		l := &lines{w: w, delay: lineDelay}
		line := strings.Repeat("x", 99) + "\n"
		for i := range 2 * lineBuffer / len(line) {
			if i == 1 {
				synctest.Wait() // the first is being written
			}
			if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
		}
		synctest.Wait()
		var got bytes.Buffer
		go func() { _, _ = io.Copy(&got, r) }()
		l.Flush()
		synctest.Wait()
		if want := len(line) * (1 + lineBuffer/len(line)); got.Len() != want {
			t.Errorf("%d bytes came out, want %d", got.Len(), want)
		}
		if _, err := l.Write([]byte("later\n")); err != nil {
			t.Fatal(err)
		}
		l.Flush()
		synctest.Wait()
		if !strings.HasSuffix(got.String(), "x\nlater\n") {
			t.Errorf("then % x", got.Bytes()[got.Len()-10:])
		}
		w.Close()
		synctest.Wait()
	})
}
