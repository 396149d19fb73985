//go:build unix

package main

import "syscall"

// session returns the attributes of a process, in a session of its own if alone is set.
func session(alone bool) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: alone} }
