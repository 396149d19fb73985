//go:build !linux

package socks

import "net/netip"

// askSystem finds no owner: on these systems it would need privileges.
func askSystem(socketKind, netip.AddrPort, netip.AddrPort) socketUser { return socketUser{} }
