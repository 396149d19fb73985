package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"wmproxy/client"
	"wmproxy/internal/egress"
	"wmproxy/internal/link"
	"wmproxy/socks"
)

// maxInputFile bounds what is read of a file that a flag names, in bytes.
const maxInputFile = 1 << 20

// Bounds of --udp-idle.
const (
	minUDPIdle = time.Second
	maxUDPIdle = 24 * time.Hour
)

// hostPort reads HOST:PORT, HOST or :PORT (an IPv6 address with a port in
// brackets), fills in the default port, and returns HOST:PORT. A bare number is
// refused, because it is a port to some and a host to others.
func (p *program) hostPort(flag, text, defaultPort string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = text, defaultPort
		if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
			host = text[1 : len(text)-1]
		}
		if _, err := strconv.Atoi(host); err == nil || host == "" {
			return "", p.wrong(flag, "must be HOST:PORT or :PORT")
		}
	}
	if host != "" && link.CheckHost(host) != nil {
		return "", p.wrong(flag, "must be HOST:PORT with an IP address (IPv6 in brackets) or a name as HOST")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", p.wrong(flag, "must end in a port from 0 to 65535")
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

// target is hostPort for an address to connect to: host and port are needed.
func (p *program) target(flag, text, defaultPort string) (string, error) {
	address, err := p.hostPort(flag, text, defaultPort)
	if err != nil {
		return "", err
	}
	host, port, _ := net.SplitHostPort(address)
	if host == "" || port == "0" {
		return "", p.wrong(flag, "must be HOST:PORT with a port from 1 to 65535")
	}
	return address, nil
}

// prefixes reads a list of CIDRs; an address alone is itself.
func (p *program) prefixes(c *cli.Context, flag string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range c.StringSlice(flag) {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			addr, err := netip.ParseAddr(text)
			if err != nil || addr.Zone() != "" {
				return nil, p.wrong(flag, fmt.Sprintf("must be a network such as 10.0.0.0/8 or fd00::/8, not %q", text))
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		// Addresses are unmapped wherever they are compared, so a mapped prefix
		// would silently match nothing.
		if addr := prefix.Addr(); addr.Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
		}
		list = append(list, prefix.Masked())
	}
	return list, nil
}

// address reads an IP address, IPv4-mapped ones unmapped; none is the zero Addr.
func (p *program) address(c *cli.Context, flag string) (netip.Addr, error) {
	text := c.String(flag)
	if text == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" || addr.IsMulticast() {
		return netip.Addr{}, p.wrong(flag, "must be the IP address that applications reach this machine by, not a name")
	}
	return addr.Unmap(), nil
}

// portRange reads PORT or PORT-PORT; none is the zero value.
func (p *program) portRange(c *cli.Context, flag string) (socks.PortRange, error) {
	text := c.String(flag)
	if text == "" {
		return socks.PortRange{}, nil
	}
	r, err := socks.ParsePortRange(text)
	if err != nil {
		return r, p.wrong(flag, "must be a port or a rising range such as 40000-40999, from 1 to 65535")
	}
	return r, nil
}

// choice reads one of a few words.
func (p *program) choice(c *cli.Context, flag string, words ...string) (string, error) {
	text := c.String(flag)
	for _, word := range words {
		if text == word {
			return word, nil
		}
	}
	return "", p.wrong(flag, "must be one of "+strings.Join(words, ", "))
}

func (p *program) filtering(c *cli.Context) (egress.Filtering, error) {
	f, err := egress.ParseFiltering(c.String("filtering"))
	if err != nil {
		return f, p.wrong("filtering", "must be one of endpoint-independent, address, address-and-port")
	}
	return f, nil
}

func (p *program) udpIdle(c *cli.Context) (time.Duration, error) {
	idle := c.Duration("udp-idle")
	if idle < minUDPIdle || idle > maxUDPIdle {
		return 0, p.wrong("udp-idle", "must be from 1s to 24h")
	}
	return idle, nil
}

// Bounds of the times of an unstable network.
const (
	minTimer = 100 * time.Millisecond
	maxHold  = 24 * time.Hour
	maxDrain = time.Hour
)

func deadFlag() cli.Flag {
	return &cli.DurationFlag{Name: "dead", Value: 30 * time.Second, Usage: "close a connection of the tunnel without a sign of life for `TIME`, and reset its TCP streams"}
}

// timers reads how soon a carrier is doubted.
func (p *program) timers(c *cli.Context) (t client.Timers, err error) {
	if t.Suspect, err = p.timer(c, "suspect", minTimer, client.MaxDead); err != nil {
		return t, err
	}
	if t.SuspectIdle, err = p.timer(c, "suspect-idle", t.Suspect, client.MaxDead); err != nil {
		return t, err
	}
	if t.Steady, err = p.timer(c, "steady", minTimer, time.Minute); err != nil {
		return t, err
	}
	t.Dead, err = p.timer(c, "dead", t.Suspect, client.MaxDead)
	return t, err
}

// timer reads a time within bounds.
func (p *program) timer(c *cli.Context, flag string, least, most time.Duration) (time.Duration, error) {
	d := c.Duration(flag)
	if d < least || d > most {
		return 0, p.wrong(flag, fmt.Sprintf("must be from %v to %v", least, most))
	}
	return d, nil
}

// exitFlags are the flags of commands that open real sockets to targets.
func exitFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "allow", KeepSpace: true, Usage: "let destinations in `CIDR` through that are refused by default (private, loopback, this machine); may be repeated"},
		&cli.StringSliceFlag{Name: "deny", KeepSpace: true, Usage: "refuse destinations in `CIDR`, also where --allow lets them through; may be repeated"},
		&cli.DurationFlag{Name: "udp-idle", Value: 5 * time.Minute, Usage: "close the socket of a UDP association that neither sends nor hears anything for `TIME` (see the README); its next datagram opens another"},
		&cli.StringFlag{Name: "filtering", Value: egress.EndpointIndependent.String(), Usage: "which remotes reach an association: `KIND` is endpoint-independent, address or address-and-port"},
		&cli.BoolFlag{Name: "no-offload", Usage: "never hand the kernel several UDP datagrams as one (for network cards that damage them)", DisableDefaultText: true},
	}
}

// readSmall reads a file that a flag names, of at most maxInputFile bytes. Its
// error says which file, why, and what to do.
func (p *program) readSmall(flag, path string) ([]byte, error) {
	data, err := readBounded(path)
	if err != nil {
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return nil, fmt.Errorf("cannot read %s (%w); check %s and the permissions of the file", path, err, p.origin(flag))
	}
	return data, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxInputFile+1))
	if err == nil && len(data) > maxInputFile {
		err = errors.New("it is larger than 1 MiB")
	}
	return data, err
}
