package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"wmproxy/client"
	"wmproxy/internal/link"
)

// linkVariable is the environment's way to give a client its link.
const linkVariable = "WMPROXY_LINK"

// clientOptions is a client's Config but for what has to be opened first.
type clientOptions struct {
	config   client.Config // State and Log are not set
	entrance entranceOptions
	stateDir string // empty: the default, and only if it can be had
	log      logOptions
	debug    netip.AddrPort // not valid: off
}

func (p *program) client() *cli.Command {
	return &cli.Command{
		Name:      "client",
		Usage:     "the near end: a SOCKS5 server whose UDP and TCP leave from your server",
		UsageText: "wmproxy client LINK... [flags]\nwmproxy client --link-file FILE [flags]\n" + linkVariable + "=LINK wmproxy client [flags]",
		ArgsUsage: "[LINK...]",
		Description: "LINK is what the server printed. It holds a secret, and on the command line other users of this\n" +
			"machine can see it (ps): use --link-file or " + linkVariable + " where that matters. With links of several\n" +
			"servers, the first that works is used, or the fastest; when it is gone, everything moves to another.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "link-file", Usage: "read the links from `FILE`, one on a line"},
			&cli.StringFlag{Name: "listen", Value: "127.0.0.1:1080", Usage: "listen for SOCKS5 on `HOST:PORT`"},
		}, entranceFlags(), []cli.Flag{
			&cli.StringFlag{Name: "transport", Value: client.Auto, Usage: "`KIND` is quic, yamux or auto: both, each falling over to the other"},
			&cli.StringFlag{Name: "streams", Value: client.Auto, Usage: "carry TCP over `KIND` first: quic, yamux or auto, which is yamux while it seldom has to send again"},
			&cli.StringFlag{Name: "pick", Value: client.Order, Usage: "among several servers use the first that works, order, or the one with the lowest round-trip time, fastest (`HOW`)"},
			&cli.DurationFlag{Name: "suspect", Value: 2 * time.Second, Usage: "leave a connection of the tunnel that gives no sign of life, or loses half, for `TIME` while in use"},
			&cli.DurationFlag{Name: "suspect-idle", Value: 20 * time.Second, Usage: "the same while nothing uses it (`TIME`)"},
			&cli.DurationFlag{Name: "steady", Value: 5 * time.Second, Usage: "return to it when it has worked well for `TIME`; each relapse doubles that, up to a minute"},
			deadFlag(), memoryFlag(),
			&cli.StringFlag{Name: "state-dir", Usage: "keep state in `DIR`", DefaultText: "/var/lib/wmproxy/client for root, else ~/.local/state/wmproxy/client"},
			&cli.BoolFlag{Name: "no-offload", Usage: "never hand the kernel several UDP datagrams as one (for network cards that damage them)", DisableDefaultText: true},
		}, logFlags(), debugFlags()),
		Action: func(c *cli.Context) error {
			p.keepHangups()
			o, err := p.clientOptions(c)
			if err != nil {
				return err
			}
			return p.runClient(c.Context, o)
		},
	}
}

// clientOptions turns flags into options; it reads files and opens nothing.
func (p *program) clientOptions(c *cli.Context) (o clientOptions, err error) {
	o.stateDir = c.String("state-dir")
	o.config.NoOffload = c.Bool("no-offload")
	if o.config.Links, err = p.links(c); err != nil {
		return o, err
	}
	if o.config.Pick, err = p.choice(c, "pick", client.Order, client.Fastest); err != nil {
		return o, err
	}
	if o.config.Timers, err = p.timers(c); err != nil {
		return o, err
	}
	if o.entrance, err = p.entranceOptions(c, "listen", "1080"); err != nil {
		return o, err
	}
	o.config.Listen = o.entrance.listen
	o.config.User, o.config.Pass = o.entrance.user, o.entrance.pass
	o.config.UDPAdvertise, o.config.UDPPorts, o.config.UDPFrom = o.entrance.advertise, o.entrance.ports, o.entrance.from
	o.config.AddressAnswers = o.entrance.addressAnswers
	if o.config.Transport, err = p.choice(c, "transport", client.Auto, client.QUIC, client.Yamux); err != nil {
		return o, err
	}
	if o.config.Streams, err = p.choice(c, "streams", client.Auto, client.QUIC, client.Yamux); err != nil {
		return o, err
	}
	if one := o.config.Transport; one != client.Auto && o.config.Streams != client.Auto && o.config.Streams != one {
		return o, usageErrorf("%s is a carrier that %s leaves out; make them the same or drop one", p.origin("streams"), p.origin("transport"))
	}
	if o.config.Memory, err = p.memory(c); err != nil {
		return o, err
	}
	if o.debug, err = p.debugAddr(c); err != nil {
		return o, err
	}
	o.log, err = p.logOptions(c)
	return o, err
}

// links reads the links from where they were given: what was typed wins over the
// environment, and of one kind there may be only one.
func (p *program) links(c *cli.Context) ([]link.Link, error) {
	arguments, path, variable := c.Args().Slice(), c.String("link-file"), p.getenv(linkVariable)
	fileTyped := path != "" && p.fromEnv["link-file"] == ""
	switch {
	case len(arguments) > 0 && fileTyped:
		return nil, usageErrorf("a link and --link-file are both given; keep one")
	case len(arguments) > 0:
		return parseLinks(arguments, "")
	case path != "" && !fileTyped && variable != "":
		return nil, usageErrorf("%s and %s are both set; keep one", linkVariable, p.origin("link-file"))
	case path != "":
		data, err := p.readSmall("link-file", path)
		if err != nil {
			return nil, err
		}
		links, err := link.ParseAll(string(data))
		if err != nil {
			return nil, fmt.Errorf("in %s: %w", path, err)
		}
		return links, nil
	case variable != "":
		return parseLinks([]string{variable}, "in "+linkVariable+": ")
	}
	return nil, usageErrorf("there is no link; paste the one that the server printed, or give --link-file FILE or %s", linkVariable)
}

func parseLinks(texts []string, where string) ([]link.Link, error) {
	links, err := link.ParseAll(strings.Join(texts, "\n"))
	if err != nil {
		return nil, usageErrorf("%s%v", where, err)
	}
	return links, nil
}

func (p *program) runClient(ctx context.Context, o clientOptions) error {
	if err := p.checkExposure(ctx, o.entrance); err != nil {
		return err
	}
	log := p.logger(o.log)
	defer p.onHangup(nothingToReload(log))()
	stop, err := prepare(ctx, o.debug, log)
	if err != nil {
		return p.listenFailure(err, "debug")
	}
	defer stop()
	dir, err := openOptionalState("client", o.stateDir, log)
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close()
	}
	o.config.Descriptors = descriptorLimit()
	o.config.State, o.config.Log = dir, log
	o.config.Memory = memoryOr(o.config.Memory)
	tunnel, err := client.New(o.config)
	if err != nil {
		return err
	}
	return p.listenFailure(tunnel.Run(ctx), "listen")
}
