package udpio

import (
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestABreathIsTakenOncePerManyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b breather
		began := time.Now()
		for i := range 10 * busyReads {
			if took, want := time.Since(began), time.Duration(i/busyReads)*time.Microsecond; took != want {
				t.Fatalf("%v of rest before read %d, want %v", took, i, want)
			}
			b.busy()
		}
	})
}

// Time does not matter here, only whether the runtime asks its poller: how many
// reads a neighbour's round trip takes while there is always something to read.
func TestAReaderThatAlwaysFindsSomethingShutsOutNobody(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()

	const trips = 200
	done := make(chan error, 1)
	var neighbour sync.WaitGroup
	defer neighbour.Wait()
	neighbour.Go(func() { _, err := io.Copy(far, far); done <- err })
	neighbour.Go(func() {
		b := make([]byte, 1)
		for range trips {
			if _, err := near.Write(b); err != nil {
				break
			}
			if _, err := io.ReadFull(near, b); err != nil {
				break
			}
		}
		near.Close()
	})
	var breath breather
	reads := 0
	for ended := false; !ended; reads++ {
		breath.busy()
		runtime.Gosched() // what was read is dealt with
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			ended = true
		default:
		}
	}
	t.Logf("%d reads for each round trip of a neighbour", reads/trips)
	if most := 4 * busyReads; reads > trips*most {
		t.Errorf("a neighbour's round trip took %d reads, want at most %d", reads/trips, most)
	}
}
