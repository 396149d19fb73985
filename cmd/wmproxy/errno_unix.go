//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package main

import "syscall"

// Why a socket cannot be bound.
const (
	errAddrInUse    = syscall.EADDRINUSE
	errAccess       = syscall.EACCES
	errAddrNotAvail = syscall.EADDRNOTAVAIL
	errNoFamily     = syscall.EAFNOSUPPORT
)
