package main

import (
	"log/slog"
	"time"

	"github.com/lmittmann/tint"

	"wmproxy/internal/config"
	"wmproxy/internal/loglimit"
)

// logger returns the logger, which drops lines of a kind that comes too often.
func (p *program) logger(o config.Log) *slog.Logger {
	p.limited = loglimit.New(p.logHandler(o))
	return slog.New(p.limited)
}

// logHandler writes log lines, in colour on terminals unless the user refused that
// (no-color.org).
func (p *program) logHandler(o config.Log) slog.Handler {
	w := p.log
	if w == nil {
		w = p.stderr
	}
	var level slog.Level
	_ = level.UnmarshalText([]byte(o.Level)) // one of its words
	if o.Format == config.LogJSON || o.Format == config.Auto && !p.console {
		return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})
	}
	return tint.NewTextHandler(w, &tint.Options{
		Level:      level,
		TimeFormat: time.TimeOnly,
		NoColor:    !p.console || p.getenv("NO_COLOR") != "",
	})
}
