//go:build linux

// Command benchroad measures wmproxy beside other tunnels over paths like those of the
// Internet: long, narrow, lossy, policed. It makes each path of network namespaces
// (internal/netlab), runs the same loads through each system in turn, and writes medians to
// docs/ROAD.md, with a chart for each path. It takes root. Only what was measured is written.
//
//	go run ./tools/benchroad [-paths P4,...] [-loads LOAD,...] [-systems NAME,...] [-rounds N]
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

// options are the settings from the command line.
type options struct {
	paths      []string
	loads      []string
	systems    []string
	congestion []string // of the kernel
	rounds     int
	duration   time.Duration // of a load after its warm-up
	seed       uint64
	out        string // page to write
	wmproxy    string // binary; empty: built from the source
	render     bool   // write the page from earlier results alone
	command    string // as typed, for the page
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if len(os.Args) > 1 && (os.Args[1] == loadCommand || os.Args[1] == farCommand) {
		exit(serve(ctx, os.Args[1], os.Args[2:]), 1)
		return
	}
	o, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	exit(err, 2)
	exit(run(ctx, o), 1)
}

// serve is what benchroad does when it started itself on a host of the network.
func serve(ctx context.Context, command string, args []string) error {
	if command == loadCommand {
		return runTask(ctx, args, os.Stdout)
	}
	return runFar(ctx, args)
}

// exit ends the program with code if there is an error.
func exit(err error, code int) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchroad:", err)
		os.Exit(code)
	}
}

func parse(args []string, out io.Writer) (o options, err error) {
	var paths, loads, systems, congestion string
	f := flag.NewFlagSet("benchroad", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&paths, "paths", "", "these `PATHS` only, with commas: "+strings.Join(pathNames(), ","))
	f.StringVar(&loads, "loads", "", "these `LOADS` only, with commas: "+strings.Join(loadNames(), ","))
	f.StringVar(&systems, "systems", "", "these `SYSTEMS` only, with commas: "+strings.Join(systemNames(), ","))
	f.StringVar(&congestion, "cc", "cubic,bbr", "congestion controls of the kernel, `NAMES` with commas; what does not use TCP runs with the first alone")
	f.IntVar(&o.rounds, "rounds", 3, "`N` rounds of each load")
	f.DurationVar(&o.duration, "dur", 8*time.Second, "`TIME` of one round of a load, after its warm-up")
	f.Uint64Var(&o.seed, "seed", 1, "`NUMBER` that the losses of the first round follow from")
	f.StringVar(&o.out, "out", "docs/ROAD.md", "page to write: `FILE`, with results and charts in a directory of its name beside it")
	f.StringVar(&o.wmproxy, "wmproxy", "", "measure the binary `FILE` in place of building one")
	f.BoolVar(&o.render, "render", false, "measure nothing, write the page again from the results beside it")
	if err = f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%q is left over; lists have commas and no spaces", f.Arg(0))
	}
	o.command = strings.TrimSpace("go run ./tools/benchroad " + strings.Join(args, " "))
	for _, list := range []struct {
		flag, words string
		known       []string
		to          *[]string
	}{
		{"-paths", paths, pathNames(), &o.paths},
		{"-loads", loads, loadNames(), &o.loads},
		{"-systems", systems, systemNames(), &o.systems},
		{"-cc", congestion, []string{"cubic", "bbr"}, &o.congestion},
	} {
		if *list.to, err = stage.Words(list.words, list.known); err != nil {
			return o, fmt.Errorf("%s: %w", list.flag, err)
		}
	}
	if o.rounds < 1 || o.duration < time.Second {
		return o, errors.New("-rounds takes 1 or more, -dur 1s or more")
	}
	return o, nil
}
