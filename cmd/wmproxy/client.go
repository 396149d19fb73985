package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/urfave/cli/v2"

	"wmproxy/client"
	"wmproxy/internal/link"
	"wmproxy/internal/state"
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
		UsageText: "wmproxy client LINK [flags]\nwmproxy client --link-file FILE [flags]\n" + linkVariable + "=LINK wmproxy client [flags]",
		ArgsUsage: "[LINK]",
		Description: "LINK is what the server printed. It holds a secret, and on the command line other users of this\n" +
			"machine can see it (ps): use --link-file or " + linkVariable + " where that matters.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "link-file", Usage: "read the link from `FILE`"},
			&cli.StringFlag{Name: "listen", Value: "127.0.0.1:1080", Usage: "listen for SOCKS5 on `HOST:PORT`"},
		}, entranceFlags(), []cli.Flag{
			&cli.StringFlag{Name: "transport", Value: client.Auto, Usage: "`KIND` is quic, yamux or auto: both, each falling over to the other"},
			&cli.StringFlag{Name: "streams", Value: client.Auto, Usage: "carry TCP over `KIND` first: quic, yamux or auto, which is yamux while it is there"},
			&cli.StringFlag{Name: "state-dir", Usage: "keep state in `DIR`", DefaultText: "/var/lib/wmproxy/client for root, else ~/.local/state/wmproxy/client"},
			&cli.BoolFlag{Name: "no-offload", Usage: "never hand the kernel several UDP datagrams as one (for network cards that damage them)", DisableDefaultText: true},
		}, logFlags(), debugFlags()),
		Action: func(c *cli.Context) error {
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
	if o.config.Link, err = p.link(c); err != nil {
		return o, err
	}
	if o.entrance, err = p.entranceOptions(c, "listen", "1080"); err != nil {
		return o, err
	}
	o.config.Listen = o.entrance.listen
	o.config.User, o.config.Pass = o.entrance.user, o.entrance.pass
	o.config.UDPAdvertise, o.config.UDPPorts, o.config.UDPFrom = o.entrance.advertise, o.entrance.ports, o.entrance.from
	if o.config.Transport, err = p.choice(c, "transport", client.Auto, client.QUIC, client.Yamux); err != nil {
		return o, err
	}
	if o.config.Streams, err = p.choice(c, "streams", client.Auto, client.QUIC, client.Yamux); err != nil {
		return o, err
	}
	if one := o.config.Transport; one != client.Auto && o.config.Streams != client.Auto && o.config.Streams != one {
		return o, usageErrorf("%s is a carrier that %s leaves out; make them the same or drop one", p.origin("streams"), p.origin("transport"))
	}
	if o.debug, err = p.debugAddr(c); err != nil {
		return o, err
	}
	o.log, err = p.logOptions(c)
	return o, err
}

// link reads the link from where it was given: what was typed wins over the
// environment, and of one kind there may be only one.
func (p *program) link(c *cli.Context) (link.Link, error) {
	argument, path, variable := c.Args().First(), c.String("link-file"), p.getenv(linkVariable)
	fileTyped := path != "" && p.fromEnv["link-file"] == ""
	switch {
	case argument != "" && fileTyped:
		return link.Link{}, usageErrorf("a link and --link-file are both given; keep one")
	case argument != "":
		return parseLink(argument, "")
	case path != "" && !fileTyped && variable != "":
		return link.Link{}, usageErrorf("%s and %s are both set; keep one", linkVariable, p.origin("link-file"))
	case path != "":
		data, err := p.readSmall("link-file", path)
		if err != nil {
			return link.Link{}, err
		}
		l, err := link.Parse(string(data))
		if err != nil {
			return link.Link{}, fmt.Errorf("in %s: %w", path, err)
		}
		return l, nil
	case variable != "":
		return parseLink(variable, "in "+linkVariable+": ")
	}
	return link.Link{}, usageErrorf("there is no link; paste the one that the server printed, or give --link-file FILE or %s", linkVariable)
}

func parseLink(text, where string) (link.Link, error) {
	l, err := link.Parse(text)
	if err != nil {
		return link.Link{}, usageErrorf("%s%v", where, err)
	}
	return l, nil
}

func (p *program) runClient(ctx context.Context, o clientOptions) error {
	if err := p.checkExposure(ctx, o.entrance); err != nil {
		return err
	}
	log := p.logger(o.log)
	stop, err := prepare(ctx, o.debug, log)
	if err != nil {
		return err
	}
	defer stop()
	dir, err := openClientState(o.stateDir, log)
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close()
	}
	o.config.State, o.config.Log = dir, log
	tunnel, err := client.New(o.config)
	if err != nil {
		return err
	}
	return tunnel.Run(ctx)
}

// openClientState opens the directory that was asked for, or the default one if
// that can be had: a client works without, so a second one on the machine, or a
// read-only system, needs no flag.
func openClientState(path string, log *slog.Logger) (*state.Dir, error) {
	if path != "" {
		return state.Open(path)
	}
	path, err := state.DefaultDir("client")
	if err != nil {
		log.Debug("no state is kept", "reason", err)
		return nil, nil
	}
	dir, err := state.Open(path)
	if err != nil {
		level := slog.LevelInfo
		if errors.Is(err, state.ErrLocked) {
			level = slog.LevelDebug
		}
		log.Log(context.Background(), level, "no state is kept", "reason", err)
		return nil, nil
	}
	return dir, nil
}
