package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"wmproxy/internal/link"
	"wmproxy/internal/state"
	"wmproxy/server"
)

// serverOptions is a server's Config but for what has to be opened first.
type serverOptions struct {
	config   server.Config // State, Log, Descriptors and Started are not set
	stateDir string        // empty: the default
	log      logOptions
	debug    netip.AddrPort // not valid: off
}

func (p *program) server() *cli.Command {
	return &cli.Command{
		Name:      "server",
		Usage:     "the far end: run it on a public machine",
		UsageText: "wmproxy server [flags]",
		Description: "Listens on one port number, UDP for QUIC and TCP for yamux over TLS 1.3. The first start makes an\n" +
			"identity and a random token; each start writes the client's link to STATE-DIR/client.link, and\n" +
			"on a terminal prints the command to paste on the client.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "listen", Value: ":8090", Usage: "listen on `HOST:PORT`, UDP and TCP"},
			&cli.StringSliceFlag{Name: "transport", KeepSpace: true, Usage: "`LIST` is quic, yamux or quic,yamux", DefaultText: "quic,yamux"},
			&cli.StringFlag{Name: "state-dir", Usage: "keep identity and token in `DIR`", DefaultText: "/var/lib/wmproxy/server for root, else ~/.local/state/wmproxy/server"},
			&cli.StringFlag{Name: "advertise", Usage: "`HOST[:PORT]` that clients reach this server by, for the link", DefaultText: "the default route's address"},
			&cli.StringSliceFlag{Name: "token", KeepSpace: true, Usage: "accept the user of `NAME:SECRET` in place of the random token; may be repeated; other users of this machine can see it here (ps), so rather use --token-file or the environment"},
			&cli.StringFlag{Name: "token-file", Usage: "accept the users in `FILE`, a NAME:SECRET on each line"},
			&cli.StringFlag{Name: "cert", Usage: "certificate chain of a public CA, PEM `FILE`, read again when it changes (with --key)"},
			&cli.StringFlag{Name: "key", Usage: "its private key, PEM `FILE`"},
			&cli.DurationFlag{Name: "hold", Value: 2 * time.Minute, Usage: "keep the associations of a client that lost its connection for `TIME`, with their addresses; 0 ends them at once"},
			&cli.DurationFlag{Name: "drain", Usage: "on SIGTERM first tell clients to go elsewhere and serve those who do not for `TIME`; SIGINT or a second SIGTERM cuts it short", DefaultText: "0: end at once"},
			deadFlag(), memoryFlag(),
		}, exitFlags(), logFlags(), debugFlags()),
		Action: func(c *cli.Context) error {
			p.keepHangups()
			o, err := p.serverOptions(c)
			if err != nil {
				return err
			}
			return p.runServer(c.Context, o)
		},
	}
}

// serverOptions turns flags into options; it reads files and opens nothing.
func (p *program) serverOptions(c *cli.Context) (o serverOptions, err error) {
	o.stateDir = c.String("state-dir")
	o.config.NoOffload = c.Bool("no-offload")
	if o.config.Listen, err = p.hostPort("listen", c.String("listen"), "8090"); err != nil {
		return o, err
	}
	if o.config.Transports, err = p.transports(c); err != nil {
		return o, err
	}
	if o.config.Advertise, err = p.advertise(c.String("advertise")); err != nil {
		return o, err
	}
	if o.config.Tokens, err = p.tokens(c); err != nil {
		return o, err
	}
	o.config.ReadTokens = func() ([]link.Token, error) { return p.tokens(c) }
	o.config.CertFile, o.config.KeyFile = c.String("cert"), c.String("key")
	if (o.config.CertFile == "") != (o.config.KeyFile == "") {
		return o, usageErrorf("--cert and --key go together; give both or neither")
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
	if o.config.Hold, err = p.timer(c, "hold", 0, maxHold); err != nil {
		return o, err
	}
	if o.config.Drain, err = p.timer(c, "drain", 0, maxDrain); err != nil {
		return o, err
	}
	if o.config.Dead, err = p.timer(c, "dead", minTimer, server.MaxDead); err != nil {
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

// transports reads --transport, whose value is a list of its own: quic,yamux.
func (p *program) transports(c *cli.Context) ([]string, error) {
	var list []string
	for _, value := range c.StringSlice("transport") {
		for word := range strings.SplitSeq(value, ",") {
			word = strings.TrimSpace(word)
			if word != server.TransportQUIC && word != server.TransportYamux {
				return nil, p.wrong("transport", "must be quic, yamux or quic,yamux")
			}
			if !slices.Contains(list, word) {
				list = append(list, word)
			}
		}
	}
	if len(list) == 0 {
		return []string{server.TransportQUIC, server.TransportYamux}, nil
	}
	return list, nil
}

// advertise checks HOST[:PORT]. Without a port, an IPv6 address has no brackets.
func (p *program) advertise(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	const none = "0" // as a default port: the server fills in its own
	address, err := p.hostPort("advertise", text, none)
	if err != nil {
		return "", err
	}
	host, port, _ := net.SplitHostPort(address)
	if err := link.CheckHost(host); err != nil {
		return "", p.wrong("advertise", "must be the IP address or name that clients reach this server by, with or without :PORT")
	}
	if port == none {
		return host, nil
	}
	return address, nil
}

// tokens reads --token and --token-file; none means the random one.
func (p *program) tokens(c *cli.Context) ([]link.Token, error) {
	var tokens []link.Token
	for _, text := range c.StringSlice("token") {
		t, err := link.ParseToken(text)
		if err != nil {
			return nil, usageErrorf("%s is not usable: %v", p.origin("token"), err)
		}
		tokens = append(tokens, t)
	}
	if path := c.String("token-file"); path != "" {
		data, err := p.readSmall("token-file", path)
		if err != nil {
			return nil, err
		}
		inFile, err := link.ParseTokens(string(data))
		if err != nil {
			return nil, fmt.Errorf("the token file %s is not usable: %w", path, err)
		}
		if len(inFile) == 0 {
			return nil, fmt.Errorf("the token file %s has no token in it; put NAME:SECRET on a line", path)
		}
		tokens = append(tokens, inFile...)
	}
	if err := link.CheckTokens(tokens); err != nil {
		return nil, usageErrorf("%v", err)
	}
	return tokens, nil
}

func (p *program) runServer(ctx context.Context, o serverOptions) error {
	log := p.logger(o.log)
	stop, err := prepare(ctx, o.debug, log)
	if err != nil {
		return p.listenFailure(err, "debug")
	}
	defer stop()
	path := o.stateDir
	if path == "" {
		if path, err = state.DefaultDir("server"); err != nil {
			return err
		}
	}
	dir, err := state.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	o.config.Descriptors = descriptorLimit()
	o.config.Memory = memoryOr(o.config.Memory)
	o.config.State, o.config.Log = dir, log
	o.config.Started = func(text string) { p.printLink(text, dir.Join(server.LinkFile)) }
	s, err := server.New(o.config)
	if err != nil {
		return err
	}
	defer p.onHangup(s.Reload)()
	if o.config.Drain > 0 {
		drain := s.Drain
		p.drain.Store(&drain)
	}
	return p.listenFailure(s.Serve(ctx), "listen")
}
