// Package tune holds the tricks that rely on how Go's runtime or the kernel happens to work. Each has a
// [Switch] that turns it off, which costs speed, memory or datagrams of a flood and nothing else. docs/TUNING.md
// names for each the assumption, the Go version, the benchmark and the gain.
package tune

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Variable is the environment variable that turns tricks off. It is read once, when the process starts.
// Its value is "off" for all of them, or a list such as "-rawcalls,-pollyield".
const Variable = "WMPROXY_TUNE"

// A Switch belongs to one trick, which is on unless Variable turns it off.
type Switch int

const (
	Processors   Switch = iota // the process starts on one processor and takes more as it fills them
	MemoryReturn               // unused memory goes back to the system after each busy time
	HeapFloor                  // no garbage collection before the heap has heapFloor bytes
	RawCalls                   // the scheduler is not told of system calls that do not wait
	PollYield                  // readers that always find something let the runtime poll the network
	BatchYield                 // the reader of QUIC's socket yields within a large batch
	switches
)

var names = [switches]string{
	"processors", "memoryreturn", "heapfloor", "rawcalls", "pollyield", "batchyield",
}

var off, invalid = parse(os.Getenv(Variable))

// On reports whether the trick is in use.
func (s Switch) On() bool { return !off[s] }

// CheckEnvironment returns an error if the value of Variable was not understood.
func CheckEnvironment() error { return invalid }

func parse(value string) (off [switches]bool, err error) {
	if value == "off" {
		for i := range off {
			off[i] = true
		}
		return off, nil
	}
	for word := range strings.SplitSeq(value, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		name, minus := strings.CutPrefix(word, "-")
		i := slices.Index(names[:], name)
		if !minus || i < 0 {
			return [switches]bool{}, fmt.Errorf(`%s: %q is neither "off" nor one of -%s`, Variable, word, strings.Join(names[:], ", -"))
		}
		off[i] = true
	}
	return off, nil
}
