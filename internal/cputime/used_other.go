//go:build !unix

// Package cputime is what processors have spent: on this process, and on nothing.
package cputime

import "time"

// Used is not known here.
func Used() (time.Duration, bool) { return 0, false }
