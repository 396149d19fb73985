package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"wmproxy/internal/state"
	"wmproxy/internal/status"
)

// statusOptions is the processes to ask and the form of their reports.
type statusOptions struct {
	stateDir string // empty: the default ones of all that can be asked
	json     bool
}

func (p *program) status() *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "show the state of a running client, server or proxy: sessions, connections, associations, events",
		UsageText: "wmproxy status [flags]",
		Description: "Asks the processes with the default state directories, or the one with the given directory. Only the user who\n" +
			"runs a process can ask it, and a second client or proxy on a machine needs a --state-dir to be asked.\n" +
			"UP is towards the server, on the server towards the client.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "state-dir", Usage: "ask the process whose state directory is `DIR`", DefaultText: "the default one of a client, a server and a proxy"},
			&cli.BoolFlag{Name: "json", Usage: "print all of it as JSON, one document for each process", DisableDefaultText: true},
		},
		Action: func(c *cli.Context) error {
			o := statusOptions{stateDir: c.String("state-dir"), json: c.Bool("json")}
			dirs, err := statusDirs(o.stateDir)
			if err != nil {
				return err
			}
			return p.printStatus(c.Context, dirs, o)
		},
	}
}

// printStatus prints the reports of all processes that answer in dirs. It fails if none
// does.
func (p *program) printStatus(ctx context.Context, dirs []string, o statusOptions) error {
	answers := 0
	var failed error
	for _, dir := range dirs {
		r, document, err := status.Ask(ctx, dir)
		if errors.Is(err, status.ErrNobody) {
			continue
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if answers++; answers > 1 && !o.json {
			fmt.Fprintln(p.stdout)
		}
		if err := p.printReport(&r, document, o.json); err != nil {
			return err
		}
	}
	switch {
	case failed != nil:
		return failed
	case answers > 0:
		return nil
	case o.stateDir != "":
		return fmt.Errorf("nothing that runs has its state in %s; give the --state-dir that the client, server or proxy was started with", o.stateDir)
	}
	return errors.New("no client, server or proxy of this user answers; if one runs with a --state-dir, give the same here")
}

func (p *program) printReport(r *status.Report, document []byte, asJSON bool) error {
	if !asJSON {
		return r.WriteText(p.stdout)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, document, "", "  "); err != nil {
		return err
	}
	_, err := indented.WriteTo(p.stdout)
	return err
}

// statusDirs returns the state directories of the processes to ask.
func statusDirs(given string) (dirs []string, err error) {
	if given != "" {
		return []string{given}, nil
	}
	for _, kind := range []string{status.Client, status.Server, status.Proxy} {
		dir, err := state.DefaultDir(kind)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}
