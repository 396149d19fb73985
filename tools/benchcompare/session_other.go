//go:build !unix

package main

import "syscall"

// session is for systems without sessions: both arrangements are the same.
func session(bool) *syscall.SysProcAttr { return nil }
