// Command benchcompare measures wmproxy beside other tunnels on this machine: it
// starts all of them on loopback ports, runs the same loads of "wmproxy bench"
// through each in alternating rounds, and writes medians and ratios to
// docs/BENCHMARKS.md.
//
//	go run ./tools/benchcompare [-quick] [-only LOAD,...] [-systems NAME,...] [-without TRICK,...]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"wmproxy/tools/stage"
)

// options is the options of the command line.
type options struct {
	quick        bool
	only         []string // loads
	systems      []string
	without      []string // tricks that wmproxy is also measured without
	arrangements []string
	rounds       int
	duration     time.Duration // of a round
	hold         int           // associations
	settle       time.Duration
	out          string // a file; "-" for standard output
	wmproxy      string // the binary; "" to build it from the source
	command      string // as typed, for the report
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == relayCommand {
		exit(relay(ctx, os.Args[2:]), 1)
		return
	}
	o, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	exit(err, 2)
	exit(run(ctx, o), 1)
}

// exit ends the program with code if there is an error.
func exit(err error, code int) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchcompare:", err)
		os.Exit(code)
	}
}

func parse(args []string, out io.Writer) (o options, err error) {
	var only, systems, arrangements, without string
	f := flag.NewFlagSet("benchcompare", flag.ContinueOnError)
	f.SetOutput(out)
	f.BoolVar(&o.quick, "quick", false, "fewer and shorter rounds, a smaller hold")
	f.StringVar(&only, "only", "", "these `LOADS` only, with commas: "+strings.Join(loadNames(), ","))
	f.StringVar(&systems, "systems", "", "these `SYSTEMS` only, with commas: "+strings.Join(systemNames(), ","))
	f.StringVar(&without, "without", "", "also wmproxy without each of these `TRICKS` of docs/TUNING.md, with commas")
	f.StringVar(&arrangements, "arrangements", "", "`shared` or own only")
	f.IntVar(&o.rounds, "rounds", 0, "`N` rounds of each load (default 5, quick 3)")
	f.DurationVar(&o.duration, "dur", 0, "`TIME` of one round (default 2.5s, quick 1.5s)")
	f.IntVar(&o.hold, "hold", 0, "`N` associations to hold (default 9000, quick 2000)")
	f.DurationVar(&o.settle, "settle", 0, "measure the memory `TIME` after they are closed (default 30s, quick 5s)")
	f.StringVar(&o.out, "out", "docs/BENCHMARKS.md", "`FILE` to write, - for standard output")
	f.StringVar(&o.wmproxy, "wmproxy", "", "measure the binary `FILE` instead of building one")
	if err = f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; lists have commas and no spaces", f.Arg(0))
	}
	o.command = strings.TrimSpace("go run ./tools/benchcompare " + strings.Join(args, " "))
	o.defaults()
	if without != "" {
		o.without = strings.Split(without, ",")
	}
	if o.only, err = stage.Words(only, loadNames()); err != nil {
		return o, fmt.Errorf("-only: %w", err)
	}
	if o.systems, err = stage.Words(systems, systemNames()); err != nil {
		return o, fmt.Errorf("-systems: %w", err)
	}
	if o.arrangements, err = stage.Words(arrangements, []string{shared, own}); err != nil {
		return o, fmt.Errorf("-arrangements: %w", err)
	}
	return o, nil
}

// defaults sets the options that were not given.
func (o *options) defaults() {
	rounds, duration, hold, settle := 5, 2500*time.Millisecond, 9000, 30*time.Second
	if o.quick {
		rounds, duration, hold, settle = 3, 1500*time.Millisecond, 2000, 5*time.Second
	}
	if o.rounds <= 0 {
		o.rounds = rounds
	}
	if o.duration <= 0 {
		o.duration = duration
	}
	if o.hold <= 0 {
		o.hold = hold
	}
	if o.settle <= 0 {
		o.settle = settle
	}
}
