package config

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"wmproxy/internal/link"
)

// Secret is a text that no way of printing the tree shows.
type Secret string

const hidden = "***"

// Format writes asterisks, whatever the verb.
func (Secret) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, hidden) }

// MarshalText returns asterisks.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// UnmarshalText sets the secret.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = Secret(text)
	return nil
}

// UnmarshalText reads NAME:SECRET. Its errors do not repeat the secret.
func (u *User) UnmarshalText(text []byte) error {
	t, err := link.ParseToken(string(text))
	*u = User{Name: t.Name, Token: Secret(t.Secret)}
	return err
}

// Size is a number of bytes.
type Size int64

// UnmarshalText reads a size such as 256MiB; an empty text is 0.
func (s *Size) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	switch {
	case len(text) == 0:
		n = 0
	case err != nil || n == 0 || n > math.MaxInt64/2:
		return errors.New("must be a size such as 256MiB or 2GiB")
	}
	*s = Size(n)
	return nil
}

// PortRange is the ports First to Last. The zero value leaves the choice to the system.
type PortRange struct{ First, Last uint16 }

// UnmarshalText reads PORT or PORT-PORT; an empty text is the zero value.
func (r *PortRange) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*r = PortRange{}
		return nil
	}
	first, last, isRange := strings.Cut(string(text), "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || a == 0 || a > b {
		return errors.New("must be a port or a rising range such as 40000-40999, from 1 to 65535")
	}
	*r = PortRange{uint16(a), uint16(b)}
	return nil
}

// Filtering is the remotes whose datagrams reach an association (RFC 4787 section 5).
type Filtering uint8

// The zero value is the default, because a tunnel is to carry what peer-to-peer
// applications need.
const (
	EndpointIndependent Filtering = iota // every remote
	AddressDependent                     // addresses that the association has sent to
	AddressAndPort                       // addresses and ports that it has sent to
)

var filterings = [...]string{"endpoint-independent", "address", "address-and-port"}

func (f Filtering) String() string { return filterings[f] }

// UnmarshalText reads what String writes.
func (f *Filtering) UnmarshalText(text []byte) error {
	for i, name := range filterings {
		if string(text) == name {
			*f = Filtering(i)
			return nil
		}
	}
	return oneOf(filterings[:])
}

func oneOf(words []string) error { return errors.New("must be one of " + strings.Join(words, ", ")) }

// parse reads text into the value behind a pointer.
func parse(to any, text string) (err error) {
	switch to := to.(type) {
	case *string:
		*to = text
	case *bool:
		if *to, err = strconv.ParseBool(text); err != nil {
			return errors.New("must be true or false")
		}
	case *time.Duration:
		if *to, err = time.ParseDuration(text); err != nil {
			return errors.New("must be a duration such as 30s or 5m")
		}
	case *netip.Addr:
		*to, err = parseAddr(text)
	case *netip.AddrPort:
		*to, err = parseAddrPort(text)
	case *netip.Prefix:
		*to, err = parsePrefix(text)
	case encoding.TextUnmarshaler:
		err = to.UnmarshalText([]byte(text))
	default:
		panic(fmt.Sprintf("config: a field has the type %T, which has no text form", to))
	}
	return err
}

func parseAddr(text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, errors.New("must be an IP address, not a name")
	}
	return addr.Unmap(), nil
}

func parseAddrPort(text string) (netip.AddrPort, error) {
	if text == "" {
		return netip.AddrPort{}, nil
	}
	addr, err := netip.ParseAddrPort(text)
	if err != nil || addr.Addr().Zone() != "" {
		return netip.AddrPort{}, errors.New("must be an IP address with a port, such as 127.0.0.1:6060")
	}
	return addr, nil
}

// parsePrefix reads a CIDR; an address alone is itself.
func parsePrefix(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("must be a network such as 10.0.0.0/8 or fd00::/8, not %q", text)
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	// Addresses are unmapped wherever they are compared, so a mapped prefix would match
	// nothing.
	if addr := prefix.Addr(); addr.Is4In6() && prefix.Bits() >= 96 {
		prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
	}
	return prefix.Masked(), nil
}

// HostPort reads HOST:PORT, HOST or :PORT (an IPv6 address with a port in brackets),
// fills in the default port, and returns HOST:PORT. It refuses a bare number, which is
// a port to some and a host to others.
func HostPort(text, defaultPort string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = text, defaultPort
		if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
			host = text[1 : len(text)-1]
		}
		if _, err := strconv.Atoi(host); err == nil || host == "" {
			return "", errors.New("must be HOST:PORT or :PORT")
		}
	}
	if host != "" && link.CheckHost(host) != nil {
		return "", errors.New("must be HOST:PORT with an IP address (IPv6 in brackets) or a name as HOST")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", errors.New("must end in a port from 0 to 65535")
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}
