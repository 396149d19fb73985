package main

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

func TestPastedCommandIsOneThatWorks(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("paths are others on Windows")
	}
	onPath, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "my tools")
	if err := os.Mkdir(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{onPath, elsewhere} {
		if err := os.WriteFile(filepath.Join(dir, "wmproxy"), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", onPath)
	t.Chdir(elsewhere)
	for _, test := range []struct{ arg0, want string }{
		{"wmproxy", "wmproxy"},
		{filepath.Join(onPath, "wmproxy"), "wmproxy"},
		{"./wmproxy", "./wmproxy"},
		{filepath.Join(elsewhere, "wmproxy"), "'" + filepath.Join(elsewhere, "wmproxy") + "'"},
		{"/nowhere/it's", `'/nowhere/it'\''s'`},
	} {
		if got := commandName(test.arg0); got != test.want {
			t.Errorf("started as %s: %s, want %s", test.arg0, got, test.want)
		}
	}
}
