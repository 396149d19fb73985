package udpio

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockaddr holds a sockaddr_in or a sockaddr_in6:
//
//	sockaddr_in   family 2 (host order) · port 2 · address 4
//	sockaddr_in6  family 2 (host order) · port 2 · flow info 4 · address 16 · scope 4 (host order)
type sockaddr unix.RawSockaddrInet6

func (sa *sockaddr) in4() *unix.RawSockaddrInet4 {
	return (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
}

// put encodes addr for a socket of family and returns the length; 0 if a socket
// of that family cannot reach such an address.
func (sa *sockaddr) put(addr netip.AddrPort, family uint16) uint32 {
	ip := addr.Addr()
	switch {
	case !ip.IsValid():
		return 0
	case family == unix.AF_INET6:
		sa.Family = family
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], addr.Port())
		sa.Flowinfo = 0
		sa.Addr = ip.As16() // maps IPv4
		sa.Scope_id = scope(ip)
		return unix.SizeofSockaddrInet6
	case ip.Is4() || ip.Is4In6():
		in4 := sa.in4()
		in4.Family = family
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&in4.Port))[:], addr.Port())
		in4.Addr = ip.Unmap().As4()
		return unix.SizeofSockaddrInet4
	}
	return 0
}

// get decodes an address that the system wrote, IPv4 unmapped.
func (sa *sockaddr) get() netip.AddrPort {
	if sa.Family == unix.AF_INET {
		in4 := sa.in4()
		port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&in4.Port))[:])
		return netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), port)
	}
	ip := netip.AddrFrom16(sa.Addr).Unmap()
	if sa.Scope_id != 0 {
		// Link-local only, which no destination policy lets through by default:
		// the zone's allocation is not on anyone's steady path.
		ip = ip.WithZone(strconv.FormatUint(uint64(sa.Scope_id), 10))
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:]))
}
