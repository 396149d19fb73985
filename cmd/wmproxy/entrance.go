package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"wmproxy/socks"

	"github.com/urfave/cli/v2"
)

// maxCredential is the longest user name or password, in bytes (RFC 1929
// section 2).
const maxCredential = 255

// entranceOptions are what the SOCKS5 entrances of client and proxy share.
type entranceOptions struct {
	listen     string // HOST:PORT
	listenFlag string // "listen" or "bind", for errors
	user, pass string
	open       bool
	advertise  netip.Addr
	ports      socks.PortRange
	from       []netip.Prefix

	addressAnswers bool // answers to a name carry the address
}

// Values of --udp-answers.
const (
	answersByName    = "name"
	answersByAddress = "address"
)

func entranceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "user", Usage: "ask applications for this user `NAME` (with --pass or --pass-file)"},
		&cli.StringFlag{Name: "pass", Usage: "ask applications for this `PASSWORD`; other users of this machine can see it here (ps), so rather use --pass-file or the environment"},
		&cli.StringFlag{Name: "pass-file", Usage: "read the password from the first line of `FILE`"},
		&cli.BoolFlag{Name: "open", Usage: "listen beyond loopback without a password, for everyone who can reach the port", DisableDefaultText: true},
		&cli.StringFlag{Name: "udp", Usage: "tell applications to send their UDP to `ADDR` (behind NAT or Docker: the address they know this machine by)"},
		&cli.StringFlag{Name: "udp-port", Usage: "take UDP on a port out of `PORT-PORT`, or on the single PORT, which associations then share"},
		&cli.StringSliceFlag{Name: "udp-from", KeepSpace: true, Usage: "take UDP also from addresses in `CIDR`, not only from the one that asked; may be repeated"},
		&cli.StringFlag{Name: "udp-answers", Value: answersByName, Usage: "an application that sent UDP to a name gets answers from that name, or from the address behind it (`KIND`: name, address)"},
	}
}

// entranceOptions reads them; flag names the listening address's flag.
func (p *program) entranceOptions(c *cli.Context, flag, defaultPort string) (entranceOptions, error) {
	o := entranceOptions{listenFlag: flag, user: c.String("user"), open: c.Bool("open")}
	var err error
	if o.listen, err = p.hostPort(flag, c.String(flag), defaultPort); err != nil {
		return o, err
	}
	if o.advertise, err = p.address(c, "udp"); err != nil {
		return o, err
	}
	if o.ports, err = p.portRange(c, "udp-port"); err != nil {
		return o, err
	}
	if o.from, err = p.prefixes(c, "udp-from"); err != nil {
		return o, err
	}
	answers, err := p.choice(c, "udp-answers", answersByName, answersByAddress)
	if err != nil {
		return o, err
	}
	o.addressAnswers = answers == answersByAddress
	o.pass, err = p.password(c)
	return o, err
}

// password reads --pass or --pass-file and checks it together with --user.
func (p *program) password(c *cli.Context) (string, error) {
	pass, path := c.String("pass"), c.String("pass-file")
	switch passEnv, pathEnv := p.fromEnv["pass"] != "", p.fromEnv["pass-file"] != ""; {
	case pass == "" || path == "":
	case passEnv && !pathEnv: // what was typed wins
		pass = ""
	case pathEnv && !passEnv:
		path = ""
	default:
		return "", usageErrorf("%s and %s are both given; keep one", p.origin("pass"), p.origin("pass-file"))
	}
	if (c.String("user") == "") != (pass == "" && path == "") {
		return "", usageErrorf("--user and --pass (or --pass-file) go together; give both or neither")
	}
	if path != "" {
		data, err := p.readSmall("pass-file", path)
		if err != nil {
			return "", err
		}
		pass, _, _ = strings.Cut(string(data), "\n")
		pass = strings.TrimSuffix(pass, "\r")
		if pass == "" {
			return "", fmt.Errorf("the first line of %s is empty; put the password there", path)
		}
	}
	if len(c.String("user")) > maxCredential || len(pass) > maxCredential {
		return "", usageErrorf("--user and the password may have at most %d bytes each; shorten them", maxCredential)
	}
	return pass, nil
}

// checkExposure is the rule about loopback: an entrance that others can reach
// has a password or was opened on purpose. A name counts by what it resolves to.
func (p *program) checkExposure(ctx context.Context, o entranceOptions) error {
	if o.open || o.user != "" {
		return nil
	}
	host, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return err
	}
	refused := usageErrorf("%s listens beyond loopback for everyone; give --user and --pass, or --open if that is meant", p.origin(o.listenFlag))
	if host == "" {
		return refused
	}
	addrs := []netip.Addr{}
	if addr, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, addr)
	} else if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return errors.New(listenAdvice(err, p.origin(o.listenFlag)))
	}
	for _, addr := range addrs {
		if !addr.Unmap().IsLoopback() {
			return refused
		}
	}
	return nil
}
