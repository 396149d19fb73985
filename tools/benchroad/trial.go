//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"time"

	"wmproxy/internal/netlab"
	"wmproxy/tools/stage"
)

// What listens at the targets. A process that fills a stream is late with datagrams: calls
// have one of their own.
var (
	echoAddr  = netip.AddrPortFrom(netlab.TargetAddr(), 7).String()
	http3Addr = netip.AddrPortFrom(netlab.TargetAddr(), 443).String()
	callAddr  = netip.AddrPortFrom(netlab.TargetAddr(), 8).String()
	unused    = netip.AddrPortFrom(netlab.TargetAddr(), 444).String()
)

// trial is one round of a load on one system.
type trial struct {
	*rig
	system   string
	peer     *peer
	began    time.Time // when the client was started
	duration time.Duration

	mu   *sync.Mutex // guards the network's orders
	held float64     // the largest share of datagrams that a load skipped because the machine held it up
}

// seen is the number of bytes that came to the path, both ways.
func (t *trial) seen() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	traffic := t.Traffic()
	return traffic[netlab.Up].SeenBytes + traffic[netlab.Down].SeenBytes
}

// do runs a task at home, reads its result and returns how many bytes came to the path
// while it was measured.
func (t *trial) do(ctx context.Context, task task, result any) (wire int, err error) {
	task.Socks = t.peer.socks
	for _, p := range t.peer.processes {
		task.PIDs = append(task.PIDs, p.PID())
	}
	text, err := json.Marshal(task)
	if err != nil {
		return 0, err
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	// A task ends by itself; the limit is for one that does not.
	ctx, cancel := context.WithTimeout(ctx, task.Warmup+task.Duration+taskLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, loadCommand, string(text))
	cmd.SysProcAttr = attributes()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = t.Home.In(cmd.Start)
	}
	if err != nil {
		return 0, err
	}
	before, answer := 0, []byte(nil)
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if lines.Text() == beganLine {
			before = t.seen()
			continue
		}
		wire = t.seen() - before
		answer = bytes.Clone(lines.Bytes())
	}
	if err := cmd.Wait(); err != nil {
		said := bytes.TrimSpace(stderr.Bytes())
		return 0, fmt.Errorf("%w: %s", err, said[:min(len(said), stage.TailBytes)])
	}
	t.note(answer)
	return wire, json.Unmarshal(answer, result)
}

// taskLimit is how much longer than its load a task may take.
const taskLimit = 40 * time.Second

// note keeps how much the machine held a load of datagrams up.
func (t *trial) note(answer []byte) {
	var r struct{ Sent, Skipped float64 }
	if json.Unmarshal(answer, &r) == nil && r.Sent > 0 {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.held = max(t.held, r.Skipped/r.Sent)
	}
}
