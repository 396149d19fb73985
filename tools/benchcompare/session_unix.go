//go:build unix

package main

import "syscall"

// session is the attributes of a process, in a session of its own or in ours.
func session(alone bool) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: alone} }
