package main

import "golang.org/x/sys/windows"

// Why a socket cannot be bound.
const (
	errAddrInUse    = windows.WSAEADDRINUSE
	errAccess       = windows.WSAEACCES
	errAddrNotAvail = windows.WSAEADDRNOTAVAIL
	errNoFamily     = windows.WSAEAFNOSUPPORT
)
