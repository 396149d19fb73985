package egress

import "net/netip"

// Public reports whether ip can be reached from anywhere.
func Public(ip netip.Addr) bool {
	ip = ip.Unmap()
	if ip.Is4() {
		return global4(ip)
	}
	return global6(ip)
}
