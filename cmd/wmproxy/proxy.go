package main

import (
	"context"
	"net/netip"
	"slices"

	"wmproxy/internal/standalone"

	"github.com/urfave/cli/v2"
)

type proxyOptions struct {
	config   standalone.Config // State and Log are not set
	entrance entranceOptions
	stateDir string // empty: the default, and only if it can be had
	log      logOptions
	debug    netip.AddrPort // not valid: off
}

func (p *program) proxy() *cli.Command {
	return &cli.Command{
		Name:        "proxy",
		Usage:       "a SOCKS5 server by itself, whose UDP and TCP leave from this machine",
		UsageText:   "wmproxy proxy [flags]\nwmproxy --flag...",
		Description: "Entrance and exit in one process, without a tunnel. Flags without a command mean this one.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "bind", Aliases: []string{"b"}, Value: "127.0.0.1:8090", Usage: "listen for SOCKS5 on `HOST[:PORT]`, port 8090 when none is given"},
			&cli.StringFlag{Name: "state-dir", Usage: "have the socket that wmproxy status asks on in `DIR`", DefaultText: "/var/lib/wmproxy/proxy for root, else ~/.local/state/wmproxy/proxy"},
			memoryFlag(),
		}, entranceFlags(), exitFlags(), logFlags(), debugFlags()),
		Action: func(c *cli.Context) error {
			p.keepHangups()
			o, err := p.proxyOptions(c)
			if err != nil {
				return err
			}
			return p.startProxy(c.Context, o)
		},
	}
}

// proxyOptions turns flags into options; it reads files and opens nothing.
func (p *program) proxyOptions(c *cli.Context) (o proxyOptions, err error) {
	o.stateDir = c.String("state-dir")
	if o.entrance, err = p.entranceOptions(c, "bind", "8090"); err != nil {
		return o, err
	}
	o.config = standalone.Config{
		Bind:         o.entrance.listen,
		User:         o.entrance.user,
		Pass:         o.entrance.pass,
		UDPAdvertise: o.entrance.advertise,
		UDPPorts:     o.entrance.ports,
		UDPFrom:      o.entrance.from,
		NoOffload:    c.Bool("no-offload"),

		AddressAnswers: o.entrance.addressAnswers,
	}
	if o.config.Allow, err = p.prefixes(c, "allow"); err != nil {
		return o, err
	}
	if o.config.Deny, err = p.prefixes(c, "deny"); err != nil {
		return o, err
	}
	if o.config.UDPIdle, err = p.udpIdle(c); err != nil {
		return o, err
	}
	if o.config.Filtering, err = p.filtering(c); err != nil {
		return o, err
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

func (p *program) startProxy(ctx context.Context, o proxyOptions) error {
	if err := p.checkExposure(ctx, o.entrance); err != nil {
		return err
	}
	o.config.Log = p.logger(o.log)
	defer p.onHangup(nothingToReload(o.config.Log))()
	stop, err := prepare(ctx, o.debug, o.config.Log)
	if err != nil {
		return p.listenFailure(err, "debug")
	}
	defer stop()
	dir, err := openOptionalState("proxy", o.stateDir, o.config.Log)
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close()
	}
	o.config.Descriptors = descriptorLimit()
	o.config.Memory = memoryOr(o.config.Memory)
	o.config.State = dir
	return p.listenFailure(standalone.Run(ctx, o.config), "bind")
}
