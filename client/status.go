package client

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"wmproxy/internal/notify"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

// settle is the time without a change before the tunnel's state is logged, so that two
// carriers that attach at once make one line.
const settle = 150 * time.Millisecond

// statusLine logs the state of the tunnel in one line whenever it changes.
type statusLine struct {
	log     *slog.Logger
	server  string
	kinds   []carrier.Kind
	changed notify.Signal

	mu      sync.Mutex
	reasons map[carrier.Kind]string // for a kind that is not attached
	ever    bool
	final   string // the reason if the server refused the client for good
}

func newStatus(log *slog.Logger, server string, kinds []carrier.Kind) *statusLine {
	return &statusLine{
		log: log, server: server, kinds: kinds,
		changed: notify.New(), reasons: make(map[carrier.Kind]string),
	}
}

// refused reports whether the server has refused the client for good and never accepted it.
func (s *statusLine) refused() bool { return s.refusal() != "" }

// refusal returns the reason if refused returns true, or else "".
func (s *statusLine) refusal() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ever {
		return ""
	}
	return s.final
}

func (s *statusLine) attached(kind carrier.Kind) {
	s.mu.Lock()
	s.ever = true
	delete(s.reasons, kind)
	s.mu.Unlock()
	s.changed.Wake()
}

func (s *statusLine) failed(kind carrier.Kind, why string, final bool) {
	s.mu.Lock()
	s.reasons[kind] = why
	if final {
		s.final = why
	}
	s.mu.Unlock()
	s.changed.Wake()
}

// run writes the lines until ctx ends.
func (s *statusLine) run(ctx context.Context, session *tunnel.Session) {
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		line, up := s.line(session)
		if line == last || line == "" {
			continue
		}
		last = line
		if up {
			s.log.Info(line)
		} else {
			s.log.Warn(line)
		}
	}
}

// line returns the line for the tunnel's state, or "" if there is none yet.
func (s *statusLine) line(session *tunnel.Session) (line string, up bool) {
	attached := session.Paths()
	doubt := session.Problem()
	s.mu.Lock()
	defer s.mu.Unlock()
	var names, missing []string
	for _, kind := range s.kinds {
		found := false
		for _, a := range attached {
			if a.Kind() == kind {
				names = append(names, fmt.Sprintf("%v to %v", kind, a.RemoteAddr()))
				found = true
				break // another one is kept for its streams
			}
		}
		if why := s.reasons[kind]; !found && why != "" {
			missing = append(missing, fmt.Sprintf("%v: %s", kind, why))
		}
	}
	switch {
	case len(names) == 0 && len(missing) == 0:
		return "", false
	case len(names) == 0:
		return "tunnel down, trying again: " + unique(missing), false
	case doubt != "":
		return fmt.Sprintf("tunnel to %s in doubt: %s; trying again", s.server, doubt), false
	case len(missing) == 0:
		return "tunnel up: " + strings.Join(names, ", "), true
	}
	return "tunnel up: " + strings.Join(names, ", ") + "; without " + strings.Join(missing, "; "), true
}

// unique joins the reasons without repeating equal ones.
func unique(reasons []string) string {
	first := ""
	for i, r := range reasons {
		_, why, _ := strings.Cut(r, ": ")
		if i == 0 {
			first = why
		} else if why != first {
			return strings.Join(reasons, "; ")
		}
	}
	return first
}
