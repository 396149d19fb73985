//go:build !linux

package udpio

import "testing"

func descriptors(testing.TB) int { return 0 }
