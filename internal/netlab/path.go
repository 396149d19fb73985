//go:build linux

package netlab

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// Path is one direction of home's link. Sizes and rates are of IP packets. The zero
// value passes everything on at once.
type Path struct {
	Delay  time.Duration
	Jitter time.Duration // up to this much more, drawn again after each Jitter
	// Reorder lets a packet with less jitter overtake an earlier one with more.
	Reorder bool

	Rate  int // bits per second; 0 for no limit
	Queue int // bytes that may wait for Rate; 0 means 100 ms of it

	Loss  float64 // share of the packets, lost at random after the queue
	Burst Burst   // more loss, some of the time

	Police   int // bits per second of UDP, beyond which packets are dropped; 0 for no limit
	Bucket   int // bytes of UDP that may exceed Police at once; 0 means 100 ms of it
	BlockUDP bool
}

// Burst is loss of a link with a good and a bad state (Gilbert, Elliott). A bad state
// begins at a random moment of each period of Length/Share, so that a short run has its part.
type Burst struct {
	Share  float64       // of the time, in bad states
	Length time.Duration // of a bad state
	Loss   float64       // share of the packets lost in it
}

// Symmetric returns the same path for both directions.
func Symmetric(p Path) [2]Path { return [2]Path{p, p} }

// defaultWait is the queue or bucket of a path, in time at its rate, if none is set.
const defaultWait = 100 * time.Millisecond

// bytesIn returns how many bytes pass in a time at a rate.
func bytesIn(wait time.Duration, bits int) int { return int(wait.Seconds() * float64(bits) / 8) }

// withDefaults returns p with the sizes that follow from its rates.
func (p Path) withDefaults() Path {
	if p.Queue == 0 {
		p.Queue = bytesIn(defaultWait, p.Rate)
	}
	if p.Bucket == 0 {
		p.Bucket = bytesIn(defaultWait, p.Police)
	}
	return p
}

// Traffic counts the packets of one direction of home's link.
type Traffic struct {
	Seen, SeenBytes           int
	Delivered, DeliveredBytes int

	// Dropped packets, by reason. Overrun are those beyond maxHeld: the path cannot be trusted then.
	Queue, Lost, Burst, Policed, Blocked, Overrun int

	// Late is how much later than due packets left: the median, 99 of 100, the worst.
	Late50, Late99, LateMax time.Duration

	// CPU is the time that passing packets on took, of both directions.
	CPU time.Duration
}

// Dropped is the sum over all reasons.
func (t *Traffic) Dropped() int {
	return t.Queue + t.Lost + t.Burst + t.Policed + t.Blocked + t.Overrun
}

// order is a command to a forwarder, as one line of JSON. The answer is [2]Traffic.
type order struct {
	Paths   *[2]Path `json:",omitempty"` // from now on
	Restart bool     `json:",omitempty"` // count anew, and begin the random numbers of Seed
	Seed    uint64   `json:",omitempty"`
}

// forwarderEnv is set in the environment of a process that is a forwarder.
const (
	forwarderEnv = "WMPROXY_NETLAB_FORWARDER"
	starting     = "starting"
	started      = "started"
)

// A program that makes networks starts itself as their forwarder, so that packets leave
// in time however busy the program is.
func init() {
	if os.Getenv(forwarderEnv) == "" {
		return
	}
	if err := forward(); err != nil {
		fmt.Fprintln(os.Stderr, "netlab:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// link is a running forwarder, seen from the network that it belongs to.
type link struct {
	orders *json.Encoder
	counts *json.Decoder
}

// joinPath makes a link between home and the router that passes packets on as n's paths
// say: a TUN device on each and a forwarder between them, since not every kernel has netem.
func (n *Net) joinPath() {
	n.t.Helper()
	var files []*os.File
	for _, end := range []struct {
		host *Host
		name string
	}{{n.Home, wan}, {n.Router, home}} {
		err := end.host.In(func() error {
			f, err := openTUN(end.name)
			files = append(files, f)
			return err
		})
		if err != nil {
			n.t.Fatalf("a TUN device on %s: %v", end.host.Name, err)
		}
		if err := end.host.nl.LinkSetTxQLen(end.host.link(end.name), tunQueue); err != nil {
			n.t.Fatalf("the queue of %s: %v", end.name, err)
		}
	}
	if err := n.startForwarder(files); err != nil {
		n.t.Fatalf("starting the forwarder: %v", err)
	}
}

// tunQueue bounds the packets that wait for the forwarder.
const tunQueue = 10_000

func (n *Net) startForwarder(files []*os.File) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), forwarderEnv+"="+starting)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = files
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.t.Cleanup(func() {
		_ = stdin.Close() // the forwarder then ends
		_ = cmd.Wait()
	})
	for _, f := range files {
		_ = f.Close()
	}
	n.link = &link{orders: json.NewEncoder(stdin), counts: json.NewDecoder(stdout)}
	return nil
}

// tell sends the forwarder an order and returns its answer.
func (n *Net) tell(o order) (t [2]Traffic) {
	n.t.Helper()
	if n.link == nil {
		n.t.Fatalf("the network was made without a path")
	}
	err := n.link.orders.Encode(o)
	if err == nil {
		err = n.link.counts.Decode(&t)
	}
	if err != nil {
		n.t.Fatalf("the forwarder: %v", err)
	}
	return t
}

// SetPath changes home's link, index Up and Down. Packets that wait in its queue leave at the new rate.
func (n *Net) SetPath(p [2]Path) {
	n.t.Helper()
	n.tell(order{Paths: &p})
}

// Restart resets the traffic's counters and begins the random numbers of a seed, so that the
// losses are the same as after another Restart with that seed.
func (n *Net) Restart(seed uint64) {
	n.t.Helper()
	n.tell(order{Restart: true, Seed: seed})
}

// Traffic returns the traffic of home's link since Restart, index Up and Down.
func (n *Net) Traffic() [2]Traffic {
	n.t.Helper()
	return n.tell(order{})
}
