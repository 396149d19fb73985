package status

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

var noon = time.Date(2025, 3, 4, 12, 4, 7, 0, time.UTC)

func TestLastTenEventsAreListedInOrder(t *testing.T) {
	var e Events
	if list := e.List(); list == nil || len(list) != 0 {
		t.Errorf("before any: %v", list)
	}
	for i := range 23 {
		e.add(noon.Add(time.Duration(i)*time.Second), fmt.Sprint("event ", i))
	}
	list := e.List()
	if len(list) != 10 {
		t.Fatalf("%d events", len(list))
	}
	for i, got := range list {
		if want := (Event{noon.Add(time.Duration(13+i) * time.Second), fmt.Sprint("event ", 13+i)}); got != want {
			t.Errorf("event %d is %v, want %v", i, got, want)
		}
	}
}

func TestLongEventIsCutBetweenCharacters(t *testing.T) {
	var e Events
	e.add(noon, "x"+strings.Repeat("é", 1000))
	got := e.List()[0].What
	if len(got) > maxEvent+len("…") || len(got) < maxEvent-1 || !utf8.ValidString(got) || !strings.HasSuffix(got, "é…") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}

func TestEventsMayBeAddedConcurrently(t *testing.T) {
	var e Events
	var note func(string) = e.Note
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				note("happened")
				if n := len(e.List()); n == 0 || n > 10 {
					t.Errorf("%d events", n)
				}
			}
		})
	}
	wg.Wait()
	for _, got := range e.List() {
		if got.What != "happened" || time.Since(got.At) > time.Minute {
			t.Errorf("%v", got)
		}
	}
}
