package stage

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// Words splits a list of known words. An empty list stands for all.
func Words(list string, known []string) ([]string, error) {
	if list == "" {
		return known, nil
	}
	words := strings.Split(list, ",")
	for _, word := range words {
		if !slices.Contains(known, word) {
			return nil, fmt.Errorf("%q is none of %s", word, strings.Join(known, ","))
		}
	}
	return words, nil
}

// Median returns the median of v, or NaN if v is empty or has a NaN in it.
func Median(v []float64) float64 {
	if len(v) == 0 || slices.ContainsFunc(v, math.IsNaN) {
		return math.NaN()
	}
	v = slices.Clone(v)
	slices.SortFunc(v, cmp.Compare[float64])
	half := len(v) / 2
	if len(v)%2 == 1 {
		return v[half]
	}
	return (v[half-1] + v[half]) / 2
}

// OneLine returns the beginning of an error as one line.
func OneLine(s string) string {
	s, _, _ = strings.Cut(s, ";")
	s = strings.Join(strings.Fields(s), " ")
	return s[:min(len(s), 200)]
}

// FileLine returns a file's first line, or a question mark if it cannot be read.
func FileLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "?"
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return string(line)
}

// Machine returns the processor, the number of CPUs, and the memory.
func Machine() string {
	model, memory := runtime.GOARCH, ""
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := field(string(b), "model name"); m != "" {
			model = m
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if kb, err := strconv.Atoi(strings.TrimSuffix(field(string(b), "MemTotal"), " kB")); err == nil {
			memory = fmt.Sprintf(", %.1f GiB", float64(kb)/(1<<20))
		}
	}
	return fmt.Sprintf("%s, %d CPUs%s", model, runtime.NumCPU(), memory)
}

// field returns the value of a line "name: value", or "" if there is none.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Revision returns the commit that is checked out.
func Revision(ctx context.Context) string {
	b, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "of this source"
	}
	return strings.TrimSpace(string(b))
}

// Version returns the version line of a program, or "" if it has none.
func Version(ctx context.Context, program string) string {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	arg := map[string]string{"ss-local": "-h", "hysteria": "version", "sing-box": "version", "gost": "-V"}[program]
	if arg == "" {
		return ""
	}
	// Some exit with an error after their help text.
	b, _ := exec.CommandContext(ctx, program, arg).CombinedOutput()
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); strings.ContainsAny(line, "0123456789") {
			return line
		}
	}
	return ""
}
