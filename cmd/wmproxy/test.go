package main

import (
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"wmproxy/internal/probe"
)

// maxTestTimeout bounds --timeout.
const maxTestTimeout = 10 * time.Minute

func (p *program) test() *cli.Command {
	return &cli.Command{
		Name:        "test",
		Usage:       "check TCP and UDP through any SOCKS5 server",
		UsageText:   "wmproxy test --socks HOST:PORT [flags]",
		Description: "Asks for a domain's A record over CONNECT and over UDP ASSOCIATE, prints each step with its time\nand the likely cause of a failure. Exit code 1 unless both pass.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "socks", Usage: "the SOCKS5 server's `HOST:PORT`"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "user `NAME` for it"},
			&cli.StringFlag{Name: "pass", Aliases: []string{"p"}, Usage: "`PASSWORD` for it; other users of this machine can see it here (ps), so rather use the environment"},
			&cli.StringFlag{Name: "dns", Value: "8.8.8.8:53", Usage: "ask the DNS server at `HOST:PORT`"},
			&cli.StringFlag{Name: "domain", Value: "example.com", Usage: "ask for `NAME`"},
			&cli.StringFlag{Name: "address", Aliases: []string{"a"}, Usage: "fail unless `IP` is among the answers"},
			&cli.StringFlag{Name: "echo", Usage: "use the UDP and TCP echo at `HOST:PORT` in place of DNS"},
			&cli.DurationFlag{Name: "timeout", Value: 10 * time.Second, Usage: "give each of the two `TIME`"},
		},
		Action: func(c *cli.Context) error {
			config, err := p.testConfig(c)
			if err != nil {
				return err
			}
			if !probe.Check(c.Context, config, p.stdout) {
				return errReported
			}
			return nil
		},
	}
}

// testConfig turns flags into the configuration.
func (p *program) testConfig(c *cli.Context) (config probe.Config, err error) {
	if c.String("socks") == "" {
		return config, usageErrorf("there is no SOCKS5 server to test; give --socks HOST:PORT")
	}
	if config.Socks, err = p.target("socks", c.String("socks"), "1080"); err != nil {
		return config, err
	}
	if config.Username, config.Password, err = credentials(c); err != nil {
		return config, err
	}
	if config.DNS, err = p.target("dns", c.String("dns"), "53"); err != nil {
		return config, err
	}
	config.Domain = strings.TrimSuffix(c.String("domain"), ".")
	if config.Domain == "" || len(config.Domain) > 253 {
		return config, p.wrong("domain", "must be a domain name")
	}
	if text := c.String("address"); text != "" {
		if config.Expect, err = netip.ParseAddr(text); err != nil || !config.Expect.Unmap().Is4() {
			return config, p.wrong("address", "must be an IPv4 address, as in an A record")
		}
		config.Expect = config.Expect.Unmap()
	}
	if text := c.String("echo"); text != "" {
		if config.Echo, err = p.target("echo", text, "7"); err != nil {
			return config, err
		}
	}
	config.Timeout = c.Duration("timeout")
	if config.Timeout <= 0 || config.Timeout > maxTestTimeout {
		return config, p.wrong("timeout", "must be more than zero and at most 10m")
	}
	return config, nil
}
