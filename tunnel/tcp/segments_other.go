//go:build !unix

package tcp

import "syscall"

// canLimitSegments reports whether limitSegments does anything.
const canLimitSegments = false

// limitSegments does nothing: Windows has no option for it.
func limitSegments(syscall.RawConn, int) error { return nil }
