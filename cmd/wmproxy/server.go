package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"wmproxy/internal/config"
	"wmproxy/internal/link"
	"wmproxy/internal/status"
	"wmproxy/server"
)

func (p *program) server() *cli.Command {
	defaults := config.DefaultServer()
	return &cli.Command{
		Name:      "server",
		Usage:     "the far end: run it on a public machine",
		UsageText: "wmproxy server [flags]",
		Description: "Listens on one port number, UDP for QUIC and TCP for yamux over TLS 1.3. The first start makes an\n" +
			"identity and a random token; each start writes the client's link to STATE-DIR/client.link, and\n" +
			"on a terminal prints the command to paste on the client.",
		Flags:  configFlags("server", &defaults),
		Action: serve(p, p.serverConfig, p.runServer),
	}
}

// serverConfig returns the configuration of the flags; it opens nothing.
func (p *program) serverConfig(c *cli.Context) (config.Server, error) {
	cfg := config.DefaultServer()
	if err := p.fill(c, &cfg); err != nil {
		return cfg, err
	}
	return cfg, p.misconfigured(cfg.Validate())
}

// users returns the users of the configuration and of its token file; none means the
// random one.
func (p *program) users(cfg *config.Server) ([]config.User, error) {
	if cfg.TokenFile == "" {
		return cfg.Users, nil
	}
	data, err := p.readSmall("token-file", cfg.TokenFile)
	if err != nil {
		return nil, err
	}
	inFile, err := link.ParseTokens(string(data))
	if err != nil {
		return nil, fmt.Errorf("the token file %s is not usable: %w", cfg.TokenFile, err)
	}
	if len(inFile) == 0 {
		return nil, fmt.Errorf("the token file %s has no token in it; put NAME:SECRET on a line", cfg.TokenFile)
	}
	users := slices.Clone(cfg.Users)
	for _, t := range inFile {
		users = append(users, config.User{Name: t.Name, Token: config.Secret(t.Secret)})
	}
	return users, nil
}

func (p *program) runServer(ctx context.Context, cfg config.Server) error {
	r, err := p.start(ctx, &cfg.Process, status.Server)
	if err != nil {
		return err
	}
	defer r.stop()
	s, err := server.New(server.Config{
		Server: cfg, Descriptors: descriptorLimit(), State: r.dir, Log: r.log,
		ReadUsers: func() ([]config.User, error) { return p.users(&cfg) },
		Started:   func(text string) { p.printLink(text, r.dir.Join(server.LinkFile)) },
	})
	if err != nil {
		return err
	}
	defer p.onHangup(s.Reload)()
	if cfg.Drain > 0 {
		drain := s.Drain
		p.drain.Store(&drain)
	}
	return p.listenFailure(s.Serve(ctx), "listen")
}
