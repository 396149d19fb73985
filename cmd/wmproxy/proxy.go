package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"wmproxy/internal/config"
	"wmproxy/internal/standalone"
	"wmproxy/internal/status"
)

func (p *program) proxy() *cli.Command {
	defaults := config.DefaultProxy()
	return &cli.Command{
		Name:        "proxy",
		Usage:       "a SOCKS5 server by itself, whose UDP and TCP leave from this machine",
		UsageText:   "wmproxy proxy [flags]\nwmproxy --flag...",
		Description: "Entrance and exit in one process, without a tunnel. Flags without a command mean this one.",
		Flags:       configFlags("proxy", &defaults),
		Action:      serve(p, p.proxyConfig, p.runProxy),
	}
}

// proxyConfig returns the configuration of the flags; it reads files and opens nothing.
func (p *program) proxyConfig(c *cli.Context) (config.Proxy, error) {
	cfg := config.DefaultProxy()
	if err := p.fill(c, &cfg); err != nil {
		return cfg, err
	}
	if err := p.readPassword(&cfg.Entrance); err != nil {
		return cfg, err
	}
	return cfg, p.misconfigured(cfg.Validate())
}

func (p *program) runProxy(ctx context.Context, cfg config.Proxy) error {
	if err := p.checkExposure(ctx, cfg.Entrance, "bind"); err != nil {
		return err
	}
	r, err := p.start(ctx, &cfg.Process, status.Proxy)
	if err != nil {
		return err
	}
	defer r.stop()
	defer p.onHangup(nothingToReload(r.log))()
	return p.listenFailure(standalone.Run(ctx, standalone.Config{Proxy: cfg, Descriptors: descriptorLimit(), State: r.dir, Log: r.log}), "bind")
}
