package stage

import (
	"context"
	"fmt"
	"os/exec"
)

// Missing returns the first of the programs that is not installed, or "".
func Missing(programs []string) string {
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			return program
		}
	}
	return ""
}

// BuildWmproxy builds the program of the module in the current directory as path.
func BuildWmproxy(ctx context.Context, path string) error {
	if b, err := exec.CommandContext(ctx, "go", "build", "-o", path, "./cmd/wmproxy").CombinedOutput(); err != nil {
		return fmt.Errorf("building wmproxy: %w\n%s", err, b)
	}
	return nil
}
