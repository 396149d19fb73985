package main

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wmproxy/internal/status"
)

func TestStatusLooksWhereEachKindKeepsItsState(t *testing.T) {
	dirs, err := statusDirs("")
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, dir := range dirs {
		kinds = append(kinds, filepath.Base(dir))
	}
	if want := []string{"client", "server", "proxy"}; !slices.Equal(kinds, want) {
		t.Errorf("it looks in %q", dirs)
	}
}

func TestStatusPrintsAllWhoAnswer(t *testing.T) {
	base, err := os.MkdirTemp("", "wmproxy-") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	var dirs []string
	for _, role := range []string{status.Client, status.Server, status.Proxy} {
		dir := filepath.Join(base, role)
		dirs = append(dirs, dir)
		if role == status.Proxy {
			continue // none runs
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		defer status.Serve(dir, func() status.Report { return status.Report{Role: role, PID: len(role)} }, slog.New(slog.DiscardHandler))()
	}

	p, stdout, _ := testProgram(nil)
	if err := p.printStatus(t.Context(), dirs, statusOptions{}); err != nil {
		t.Fatal(err)
	}
	var first []string
	for line := range strings.Lines(stdout.String()) {
		if head, _, ok := strings.Cut(line, ", up "); ok {
			first = append(first, head)
		}
	}
	if want := []string{"client 6", "server 6"}; !slices.Equal(first, want) {
		t.Errorf("got %q:\n%s", first, stdout)
	}

	p, stdout, _ = testProgram(nil)
	if err := p.printStatus(t.Context(), dirs, statusOptions{json: true}); err != nil {
		t.Fatal(err)
	}
	var roles []string
	for d := json.NewDecoder(stdout); d.More(); {
		var r status.Report
		if err := d.Decode(&r); err != nil {
			t.Fatal(err)
		}
		roles = append(roles, r.Role)
	}
	if want := []string{"client", "server"}; !slices.Equal(roles, want) {
		t.Errorf("got %q", roles)
	}

	p, stdout, _ = testProgram(nil)
	if err := p.printStatus(t.Context(), dirs[2:], statusOptions{}); err == nil || !strings.HasPrefix(err.Error(), "no client, server or proxy of this user answers") || stdout.Len() > 0 {
		t.Errorf("got %v and %q", err, stdout)
	}
}
