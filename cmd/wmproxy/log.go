package main

import (
	"log/slog"
	"time"

	"github.com/lmittmann/tint"
	"github.com/urfave/cli/v2"

	"wmproxy/internal/loglimit"
)

// Log formats.
const (
	logAuto    = "auto"
	logConsole = "console"
	logJSON    = "json"
)

// logOptions is how to log; lines go to standard error.
type logOptions struct {
	format string // logConsole or logJSON
	level  slog.Level
}

func logFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "log-format", Value: logAuto, Usage: "`FORMAT` is console, json, or auto: console on a terminal, json otherwise"},
		&cli.StringFlag{Name: "log-level", Value: "info", Usage: "`LEVEL` is debug, info, warn or error"},
	}
}

func (p *program) logOptions(c *cli.Context) (logOptions, error) {
	format, err := p.choice(c, "log-format", logAuto, logConsole, logJSON)
	if err != nil {
		return logOptions{}, err
	}
	if format == logAuto {
		format = logJSON
		if p.console {
			format = logConsole
		}
	}
	word, err := p.choice(c, "log-level", "debug", "info", "warn", "error")
	if err != nil {
		return logOptions{}, err
	}
	var level slog.Level
	err = level.UnmarshalText([]byte(word))
	return logOptions{format: format, level: level}, err
}

// logger returns the logger. Of lines that somebody can cause at will it passes on a few.
func (p *program) logger(o logOptions) *slog.Logger {
	p.limited = loglimit.New(p.logHandler(o))
	return slog.New(p.limited)
}

// logHandler writes log lines, in colour on terminals unless the user refused that
// (no-color.org).
func (p *program) logHandler(o logOptions) slog.Handler {
	w := p.log
	if w == nil {
		w = p.stderr
	}
	if o.format == logJSON {
		return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: o.level})
	}
	return tint.NewTextHandler(w, &tint.Options{
		Level:      o.level,
		TimeFormat: time.TimeOnly,
		NoColor:    !p.console || p.getenv("NO_COLOR") != "",
	})
}
