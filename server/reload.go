package server

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"wmproxy/internal/user"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

// maxNamed bounds the users that one log line names.
const maxNamed = 20

// Reload reads the tokens and the certificate files again. If a user's token was
// removed or replaced, the user's sessions end; other users lose nothing. A broken
// file changes nothing. Reload does not wait for the outcome, which is logged.
func (s *Server) Reload() { s.reload.Wake() }

// serveReload serves the calls of Reload until ctx ends. relink writes the client's link again.
func (s *Server) serveReload(ctx context.Context, id *identity, registry *tunnel.Registry, relink func() error) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.reload:
		}
		if err := s.reloadTokens(registry, relink); err != nil {
			s.cfg.Log.Error("the tokens cannot be used, the old ones stay", slog.Any("error", err))
		}
		if id.reload != nil {
			id.reload()
		}
	}
}

// reloadTokens replaces the tokens. If it returns an error the old ones stay.
func (s *Server) reloadTokens(registry *tunnel.Registry, relink func() error) error {
	if err := protect(s.cfg.State, s.cfg.Log); err != nil {
		return err
	}
	given, err := s.cfg.tokens()
	if err != nil {
		return err
	}
	next, err := loadTokens(given, s.cfg.State)
	if err != nil {
		return err
	}
	old := *s.first.Load()
	change := s.setTokens(next)
	gone := slices.Concat(change.Removed, change.Changed)
	ended := registry.EndSessions(func(u *user.User) bool { return slices.Contains(gone, u) },
		carrier.CodeAuth, "the token of this user was removed or replaced; get a new link from the server")
	s.cfg.Log.Info("the tokens were read again", slog.Int("users", len(next)),
		slog.String("added", named(change.Added)), slog.String("removed", named(change.Removed)),
		slog.String("new_secret", named(change.Changed)), slog.Int("sessions_ended", ended))
	s.events.Note(fmt.Sprintf("the tokens were read again: %d added, %d removed, %d with a new secret",
		len(change.Added), len(change.Removed), len(change.Changed)))
	if next[0] != old {
		if err := relink(); err != nil {
			s.cfg.Log.Error("the new link could not be kept", slog.Any("error", err))
		} else {
			s.cfg.Log.Info("the link for clients is another now", slog.String("file", s.cfg.State.Join(LinkFile)))
		}
	}
	return nil
}

// named lists the users' names. If there are too many it gives the number of the rest.
func named(users []*user.User) string {
	var names []string
	for _, u := range users[:min(len(users), maxNamed)] {
		names = append(names, u.Name)
	}
	list := strings.Join(names, ", ")
	if more := len(users) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", list, more)
	}
	return list
}
