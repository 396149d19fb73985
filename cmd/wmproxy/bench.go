package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"wmproxy/internal/bench"
	"wmproxy/internal/probe"
)

// Defaults of a load.
const (
	defaultEcho       = "127.0.0.1:7007"
	defaultWindow     = 32
	defaultAssocs     = 4
	defaultSize       = 64
	defaultLoad       = 3 * time.Second
	maxBenchProcesses = 64
	maxSettle         = time.Hour
	defaultHeldAssocs = 1000
	defaultChurners   = 16
	defaultStreams    = 4
	defaultHoldSettle = 30 * time.Second
	defaultBenchWait  = bench.DefaultTimeout
)

// benchFlags names the loads that take a flag. All loads take a flag that is not in it.
var benchFlags = map[string][]string{
	"listen": {"echo"},
	"assoc":  {"udp", "hold"}, "window": {"udp"}, "rate": {"udp"},
	"size": {"udp", "churn", "hold"}, "timeout": {"udp", "churn", "hold"},
	"streams": {"tcp"}, "dir": {"tcp"},
	"workers": {"churn"},
	"settle":  {"hold"},
	"offload": {"udp", "echo"},
	"dur":     {"udp", "tcp", "churn", "hold"},
	"socks":   {"udp", "tcp", "churn", "hold"}, "direct": {"udp", "tcp", "churn", "hold"},
	"user": {"udp", "tcp", "churn", "hold"}, "pass": {"udp", "tcp", "churn", "hold"},
	"target": {"udp", "tcp", "churn", "hold"}, "pids": {"udp", "tcp", "churn", "hold"},
	"json": {"udp", "tcp", "churn", "hold"},
}

// benchLoads are the words that bench takes.
var benchLoads = []string{"udp", "tcp", "churn", "hold", "echo"}

func (p *program) bench() *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "load any SOCKS5 server and measure the results",
		UsageText: "wmproxy bench echo [--listen HOST:PORT]\nwmproxy bench udp|tcp|churn|hold --socks HOST:PORT --target HOST:PORT [flags]\nwmproxy bench udp|tcp|churn|hold --direct --target HOST:PORT [flags]",
		ArgsUsage: "LOAD",
		Description: "echo   the far end of the loads, for UDP and TCP; start it where --target points\n" +
			"udp    datagrams on some associations: so many in flight (--window), or so many per second (--rate)\n" +
			"tcp    streams at full speed\n" +
			"churn  associations opened, used once and closed\n" +
			"hold   associations held open: the memory of each, and whether all still answer\n\n" +
			"One datagram in all figures is one round trip. Ctrl-C ends a load early, with the figures until then.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Value: defaultEcho, Usage: "echo: listen on `HOST:PORT`, UDP and TCP"},
			&cli.StringFlag{Name: "socks", Usage: "go through the SOCKS5 server at `HOST:PORT`"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "user `NAME` for it"},
			&cli.StringFlag{Name: "pass", Aliases: []string{"p"}, Usage: "`PASSWORD` for it; other users of this machine can see it here (ps), so rather use the environment"},
			&cli.BoolFlag{Name: "direct", Usage: "go straight to the target: the floor", DisableDefaultText: true},
			&cli.StringFlag{Name: "target", Value: defaultEcho, Usage: "`HOST:PORT` of the echo"},
			&cli.DurationFlag{Name: "dur", Value: defaultLoad, Usage: "measure for `TIME`"},
			&cli.IntFlag{Name: "assoc", Usage: "udp, hold: `N` associations", DefaultText: fmt.Sprintf("udp %d, hold %d", defaultAssocs, defaultHeldAssocs)},
			&cli.IntFlag{Name: "window", Usage: "udp: keep `N` datagrams in flight on each association", DefaultText: strconv.Itoa(defaultWindow)},
			&cli.IntFlag{Name: "rate", Usage: "udp: send `N` datagrams per second, evenly over all associations"},
			&cli.IntFlag{Name: "size", Value: defaultSize, Usage: fmt.Sprintf("payload of `N` bytes, %d to %d", bench.MinSize, bench.MaxSize)},
			&cli.DurationFlag{Name: "timeout", Value: defaultBenchWait, Usage: "a datagram that is not back after `TIME` is lost"},
			&cli.IntFlag{Name: "streams", Value: defaultStreams, Usage: "tcp: `N` connections"},
			&cli.StringFlag{Name: "dir", Value: "down", Usage: "tcp: `DIRECTION` is up, down or both"},
			&cli.IntFlag{Name: "workers", Value: defaultChurners, Usage: "churn: `N` associations at a time"},
			&cli.DurationFlag{Name: "settle", Value: defaultHoldSettle, Usage: "hold: look at the memory again `TIME` after all are closed"},
			&cli.StringFlag{Name: "pids", Usage: "account for the processes `PID,PID...` (Linux)"},
			&cli.BoolFlag{Name: "offload", Usage: "pass several datagrams to the kernel as one, which is cheaper than applications do", DisableDefaultText: true},
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON", DisableDefaultText: true},
		},
		Action: func(c *cli.Context) error {
			o, err := p.benchOptions(c)
			if err != nil {
				return err
			}
			return p.runBench(c.Context, o)
		},
	}
}

// benchOptions are all loads' options; each reads its own.
type benchOptions struct {
	load   string
	common bench.Common // Progress is not set
	json   bool

	listen  netip.AddrPort
	assoc   int
	window  int
	rate    int
	size    int
	streams int
	dir     string
	workers int
	settle  time.Duration
}

// benchOptions turns flags into options; it opens nothing.
func (p *program) benchOptions(c *cli.Context) (o benchOptions, err error) {
	o.load = c.Args().First()
	if !slices.Contains(benchLoads, o.load) {
		return o, usageErrorf("bench needs a load; write wmproxy bench %s", strings.Join(benchLoads, "|"))
	}
	for name, loads := range benchFlags {
		// A flag of the environment may be meant for another load.
		if c.IsSet(name) && p.fromEnv[name] == "" && !slices.Contains(loads, o.load) {
			return o, usageErrorf("--%s is not for bench %s; leave it out, or see wmproxy bench --help", name, o.load)
		}
	}
	o.json = c.Bool("json")
	o.common.Offload = c.Bool("offload")
	if o.load == "echo" {
		o.listen, err = p.listenAddress(c, "listen")
		return o, err
	}
	if o.common.Way, err = p.benchWay(c); err != nil {
		return o, err
	}
	if o.common.PIDs, err = p.pids(c); err != nil {
		return o, err
	}
	if o.common.Duration, err = p.duration(c, "dur", bench.MaxDuration); err != nil {
		return o, err
	}
	if o.common.Timeout, err = p.duration(c, "timeout", bench.MaxTimeout); err != nil {
		return o, err
	}
	if o.settle = c.Duration("settle"); o.settle < 0 || o.settle > maxSettle {
		return o, p.wrong("settle", "must be from 0 to 1h")
	}
	if o.dir, err = p.choice(c, "dir", "up", "down", "both"); err != nil {
		return o, err
	}
	return o, p.benchNumbers(c, &o)
}

// listenAddress reads the address of a socket of ours: an IP address, since a
// name may have several.
func (p *program) listenAddress(c *cli.Context, flag string) (netip.AddrPort, error) {
	text, err := p.hostPort(flag, c.String(flag), "7007")
	if err != nil {
		return netip.AddrPort{}, err
	}
	if strings.HasPrefix(text, ":") {
		text = "[::]" + text
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return ap, p.wrong(flag, "must be HOST:PORT with an IP address as HOST, or :PORT")
	}
	return ap, nil
}

// benchWay reads the SOCKS5 server, if any, and the target.
func (p *program) benchWay(c *cli.Context) (w bench.Way, err error) {
	switch direct := c.Bool("direct"); {
	case direct == (c.String("socks") != ""):
		return w, usageErrorf("give --socks HOST:PORT to go through a SOCKS5 server, or --direct to go without one")
	case direct:
	default:
		if w.Socks, err = p.target("socks", c.String("socks"), "1080"); err != nil {
			return w, err
		}
	}
	if w.Username, w.Password, err = credentials(c); err != nil {
		return w, err
	}
	target, err := p.target("target", c.String("target"), "7007")
	if err != nil {
		return w, err
	}
	if w.Target, err = probe.ParseTarget(target); err != nil {
		return w, p.wrong("target", "must be HOST:PORT")
	}
	return w, nil
}

// pids reads the processes to account for.
func (p *program) pids(c *cli.Context) (pids []int, err error) {
	for word := range strings.SplitSeq(c.String("pids"), ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		pid, err := strconv.Atoi(word)
		if err != nil || pid <= 0 || len(pids) == maxBenchProcesses {
			return nil, p.wrong("pids", fmt.Sprintf("must be up to %d process numbers with commas between them", maxBenchProcesses))
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func (p *program) duration(c *cli.Context, flag string, most time.Duration) (time.Duration, error) {
	d := c.Duration(flag)
	if d <= 0 || d > most {
		return 0, p.wrong(flag, fmt.Sprintf("must be more than zero and at most %v", most))
	}
	return d, nil
}

// number reads a flag that counts something; unset is fallback.
func (p *program) number(c *cli.Context, flag string, fallback, least, most int) (int, error) {
	if !c.IsSet(flag) {
		return fallback, nil
	}
	n := c.Int(flag)
	if n < least || n > most {
		return 0, p.wrong(flag, fmt.Sprintf("must be a number from %d to %d", least, most))
	}
	return n, nil
}

func (p *program) benchNumbers(c *cli.Context, o *benchOptions) (err error) {
	assocs := defaultAssocs
	if o.load == "hold" {
		assocs = defaultHeldAssocs
	}
	if o.assoc, err = p.number(c, "assoc", assocs, 1, bench.MaxAssociations); err != nil {
		return err
	}
	if o.size, err = p.number(c, "size", defaultSize, bench.MinSize, bench.MaxSize); err != nil {
		return err
	}
	if o.streams, err = p.number(c, "streams", defaultStreams, 1, bench.MaxStreams); err != nil {
		return err
	}
	if o.workers, err = p.number(c, "workers", defaultChurners, 1, bench.MaxWorkers); err != nil {
		return err
	}
	if o.rate, err = p.number(c, "rate", 0, 1, bench.MaxRate); err != nil {
		return err
	}
	window := defaultWindow
	if o.rate > 0 {
		if c.IsSet("window") {
			return usageErrorf("--window and --rate are two ways to load; give one")
		}
		window = 0
	}
	o.window, err = p.number(c, "window", window, 1, bench.MaxWindow)
	return err
}

func (p *program) runBench(ctx context.Context, o benchOptions) error {
	raiseDescriptorLimit(slog.New(slog.DiscardHandler))
	if p.console {
		o.common.Progress = p.stderr
	}
	var r benchResult
	var err error
	switch o.load {
	case "echo":
		return p.benchEcho(ctx, o)
	case "udp":
		r, err = bench.UDP(ctx, bench.UDPConfig{Common: o.common, Associations: o.assoc, Window: o.window, Rate: o.rate, Size: o.size})
	case "tcp":
		r, err = bench.TCP(ctx, bench.TCPConfig{Common: o.common, Streams: o.streams, Up: o.dir != "down", Down: o.dir != "up"})
	case "churn":
		r, err = bench.Churn(ctx, bench.ChurnConfig{Common: o.common, Workers: o.workers, Size: o.size})
	case "hold":
		r, err = bench.Hold(ctx, bench.HoldConfig{Common: o.common, Associations: o.assoc, Size: o.size, Settle: o.settle})
	}
	if err != nil {
		return err
	}
	if !o.json {
		return r.Print(p.stdout)
	}
	encoder := json.NewEncoder(p.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

// benchResult is the result of any load.
type benchResult interface{ Print(io.Writer) error }

// benchEcho runs until ctx ends.
func (p *program) benchEcho(ctx context.Context, o benchOptions) error {
	e, err := bench.ListenEcho(o.listen, o.common.Offload)
	if err != nil {
		return p.listenFailure(err, "listen")
	}
	fmt.Fprintf(p.stdout, "echo on %v, UDP and TCP\n", e.Addr())
	<-ctx.Done()
	return e.Close()
}
