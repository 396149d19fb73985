package main

import (
	"wmproxy/internal/demo"

	"github.com/urfave/cli/v2"
)

func (p *program) demo() *cli.Command {
	return &cli.Command{
		Name:        "demo",
		Usage:       "see it work on this machine alone, without a network",
		UsageText:   "wmproxy demo [--once]",
		Description: "A server, a client and targets on loopback ports; prints a table of results and stays up for\nyour own tries until Ctrl-C.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "once", Usage: "exit after the table, with 0 if all passed and 1 if not", DisableDefaultText: true},
		},
		Action: func(c *cli.Context) error {
			ok, err := demo.Run(c.Context, c.Bool("once"), p.stdout)
			if err == nil && !ok {
				return errReported
			}
			return err
		},
	}
}
