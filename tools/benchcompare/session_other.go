//go:build !unix

package main

import "syscall"

// session returns nil: without sessions both arrangements are the same.
func session(bool) *syscall.SysProcAttr { return nil }
