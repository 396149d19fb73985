package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"wmproxy/client"
	"wmproxy/internal/config"
	"wmproxy/internal/link"
	"wmproxy/internal/status"
)

// linkVariable is the environment's way to give a client its link.
const linkVariable = "WMPROXY_LINK"

func (p *program) client() *cli.Command {
	defaults := config.DefaultClient()
	return &cli.Command{
		Name:      "client",
		Usage:     "the near end: a SOCKS5 server whose UDP and TCP leave from your server",
		UsageText: "wmproxy client LINK... [flags]\nwmproxy client --link-file FILE [flags]\n" + linkVariable + "=LINK wmproxy client [flags]",
		ArgsUsage: "[LINK...]",
		Description: "LINK is the link that the server printed. It contains a secret, and on the command line other users of this\n" +
			"machine can see it (ps): use --link-file or " + linkVariable + " if that matters. With links of several\n" +
			"servers, the first that works is used, or the fastest; when it is gone, everything moves to another.",
		Flags:  configFlags("client", &defaults),
		Action: serve(p, p.clientConfig, p.runClient),
	}
}

// clientConfig returns the configuration of the flags; it reads files and opens nothing.
func (p *program) clientConfig(c *cli.Context) (config.Client, error) {
	cfg := config.DefaultClient()
	if err := p.fill(c, &cfg); err != nil {
		return cfg, err
	}
	var err error
	if cfg.Links, err = p.links(c.Args().Slice(), cfg.LinkFile); err != nil {
		return cfg, err
	}
	if err := p.readPassword(&cfg.Entrance); err != nil {
		return cfg, err
	}
	return cfg, p.misconfigured(cfg.Validate())
}

// links returns the links of the arguments, the file or the environment. The command line
// wins over the environment; two sources of one kind are an error.
func (p *program) links(arguments []string, path string) ([]link.Link, error) {
	variable := p.getenv(linkVariable)
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

func (p *program) runClient(ctx context.Context, cfg config.Client) error {
	if err := p.checkExposure(ctx, cfg.Entrance, "listen"); err != nil {
		return err
	}
	r, err := p.start(ctx, &cfg.Process, status.Client)
	if err != nil {
		return err
	}
	defer r.stop()
	defer p.onHangup(nothingToReload(r.log))()
	c := client.New(client.Config{Client: cfg, Descriptors: descriptorLimit(), State: r.dir, Log: r.log})
	return p.listenFailure(c.Run(ctx), "listen")
}
