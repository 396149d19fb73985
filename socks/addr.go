// Package socks is SOCKS version 5 (RFC 1928) with username/password
// authentication (RFC 1929): the address codec, CONNECT and UDP
// ASSOCIATE at an entrance, reassembly of fragmented datagrams, and a client. It knows nothing
// of tunnels.
package socks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"wmproxy/internal/entrance"
)

// Address types, RFC 1928 section 5.
const (
	TypeIPv4 = 1
	TypeName = 3
	TypeIPv6 = 4
)

// MaxAddrLen is the longest address on the wire in bytes: type, length, a name
// of 255 bytes and the port.
const MaxAddrLen = 1 + 1 + 255 + 2

// Errors of the address codec.
var (
	errShortAddr = errors.New("socks: address is cut short")
	ErrAddrType  = errors.New("socks: unknown address type")
	errEmptyName = errors.New("socks: empty domain name")
)

// Addr is a destination: a name or an IP address, and a port.
type Addr struct {
	Name string     // empty when IP is valid
	IP   netip.Addr // never IPv4-mapped
	Port uint16
}

// AddrFrom returns ap as an Addr, with an IPv4-mapped address unmapped.
func AddrFrom(ap netip.AddrPort) Addr {
	return Addr{IP: ap.Addr().Unmap(), Port: ap.Port()}
}

// AddrPort returns the IP address and port; it is invalid when a is a name.
func (a Addr) AddrPort() netip.AddrPort { return netip.AddrPortFrom(a.IP, a.Port) }

// target returns a as an entrance names it.
func (a Addr) target() entrance.Target {
	if a.IP.IsValid() {
		return entrance.Target{Host: a.IP.String(), Port: a.Port}
	}
	return entrance.Target{Host: a.Name, Port: a.Port}
}

// String returns host:port, with brackets around an IPv6 address.
func (a Addr) String() string {
	if a.IP.IsValid() {
		return a.AddrPort().String()
	}
	return net.JoinHostPort(a.Name, strconv.Itoa(int(a.Port)))
}

// An address on the wire (RFC 1928 section 5):
//
//	+------+------------------------+------+
//	| ATYP |        address         | PORT |
//	+------+------------------------+------+
//	|  1   | 4 | 16 | 1 + 1…255     |  2   |
//	+------+------------------------+------+

// AddrLen returns how many bytes of b the address at its start takes. It
// allocates nothing and decodes nothing.
func AddrLen(b []byte) (int, error) {
	if len(b) < 2 {
		return 0, errShortAddr
	}
	var n int
	switch b[0] {
	case TypeIPv4:
		n = 1 + 4 + 2
	case TypeIPv6:
		n = 1 + 16 + 2
	case TypeName:
		if b[1] == 0 {
			return 0, errEmptyName
		}
		n = 1 + 1 + int(b[1]) + 2
	default:
		return 0, ErrAddrType
	}
	if len(b) < n {
		return 0, errShortAddr
	}
	return n, nil
}

// SplitAddr decodes the address at the start of b without allocating. For a
// name, ap holds only the port and name aliases b; otherwise name is nil. n is
// the number of bytes the address takes.
func SplitAddr(b []byte) (ap netip.AddrPort, name []byte, n int, err error) {
	n, err = AddrLen(b)
	if err != nil {
		return ap, nil, 0, err
	}
	port := binary.BigEndian.Uint16(b[n-2:])
	switch b[0] {
	case TypeIPv4:
		ap = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[1:5])), port)
	case TypeIPv6:
		ap = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[1:17])).Unmap(), port)
	default:
		ap = netip.AddrPortFrom(netip.Addr{}, port)
		name = b[2 : n-2]
	}
	return ap, name, n, nil
}

// ParseAddr decodes the address at the start of b and returns how many bytes it
// takes. A name that ParseLiteral knows becomes its address.
func ParseAddr(b []byte) (Addr, int, error) {
	ap, name, n, err := SplitAddr(b)
	if err != nil {
		return Addr{}, 0, err
	}
	if name == nil {
		return AddrFrom(ap), n, nil
	}
	a, err := AddrOf(string(name), ap.Port())
	return a, n, err
}

// AddrOf returns the address of a host and a port. A host that ParseLiteral knows becomes its address; any other is
// a name of 1 to 255 bytes.
func AddrOf(host string, port uint16) (Addr, error) {
	if ip, ok := ParseLiteral(host); ok {
		return Addr{IP: ip, Port: port}, nil
	}
	a := Addr{Name: host, Port: port}
	return a, a.encodable()
}

// ParseLiteral reports whether name is an IP address in text form, and returns it
// unmapped. Applications that take a host from a URL leave the brackets around an IPv6
// address, and applications that make names absolute put a dot behind an IPv4 address.
// An address with a zone means nothing to another machine; it is reported as no address.
func ParseLiteral(name string) (netip.Addr, bool) {
	text := strings.TrimSuffix(name, ".")
	dot := text != name
	if inner, ok := strings.CutPrefix(text, "["); ok {
		if text, ok = strings.CutSuffix(inner, "]"); !ok {
			return netip.Addr{}, false
		}
	}
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" || dot && !ip.Is4() {
		return netip.Addr{}, false
	}
	return ip.Unmap(), true
}

// encodable returns why a has no form on the wire, nil if it has one.
func (a Addr) encodable() error {
	switch {
	case a.IP.IsValid():
		return nil
	case a.Name == "":
		return errEmptyName
	case len(a.Name) > 255:
		return fmt.Errorf("domain name: %w", ErrLongName)
	}
	return nil
}

// AppendAddrPort appends ap as it stands on the wire. The zero AddrPort is
// written as 0.0.0.0:0, since some clients read only a 10-byte reply.
func AppendAddrPort(b []byte, ap netip.AddrPort) []byte {
	ip := ap.Addr().Unmap()
	switch {
	case !ip.IsValid():
		b = append(b, TypeIPv4, 0, 0, 0, 0)
	case ip.Is4():
		a := ip.As4()
		b = append(append(b, TypeIPv4), a[:]...)
	default:
		a := ip.As16()
		b = append(append(b, TypeIPv6), a[:]...)
	}
	return binary.BigEndian.AppendUint16(b, ap.Port())
}

// AppendAddr appends a as it stands on the wire. A name longer than 255 bytes
// has no form on the wire and is an error of the caller: it panics.
func AppendAddr(b []byte, a Addr) []byte {
	if a.IP.IsValid() || a.Name == "" {
		return AppendAddrPort(b, a.AddrPort())
	}
	if len(a.Name) > 255 {
		panic("socks: name longer than 255 bytes")
	}
	b = append(b, TypeName, byte(len(a.Name)))
	b = append(b, a.Name...)
	return binary.BigEndian.AppendUint16(b, a.Port)
}

// Reply codes, RFC 1928 section 6.
const (
	ReplySucceeded          = 0
	ReplyGeneralFailure     = 1
	ReplyNotAllowed         = 2
	ReplyNetworkUnreachable = 3
	ReplyHostUnreachable    = 4
	ReplyConnectionRefused  = 5
	ReplyTTLExpired         = 6
	ReplyCommandUnsupported = 7
	ReplyAddrUnsupported    = 8
)
