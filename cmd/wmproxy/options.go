package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"wmproxy/internal/config"
)

// option is the flag of one field of a configuration.
type option struct {
	path  string // of the field
	flag  string
	short string // a letter that stands for flag; empty: none
	usage string
	shown string // in place of the default; empty: the default
	or    string // the flag that gives the same thing in another way; empty: none

	// spaced is set if the items of a list may hold commas, so that spaces separate them
	// in the environment.
	spaced bool
}

// options are the flags of the commands that have a configuration, in the order of their help.
var options = map[string][]option{
	"server": slices.Concat([]option{
		{path: "listen", flag: "listen", usage: "listen on `HOST:PORT`, UDP and TCP"},
		{path: "transports", flag: "transport", usage: "`LIST` is quic, yamux or quic,yamux", shown: "quic,yamux"},
		{path: "state_dir", flag: "state-dir", usage: "keep identity and token in `DIR`", shown: "/var/lib/wmproxy/server for root, else ~/.local/state/wmproxy/server"},
		{path: "advertise", flag: "advertise", usage: "`HOST[:PORT]` that clients reach this server by, for the link", shown: "the default route's address"},
		{path: "users", flag: "token", spaced: true, usage: "accept the user of `NAME:SECRET` in place of the random token; may be repeated; other users of this machine can see it here (ps), so rather use --token-file or the environment"},
		{path: "token_file", flag: "token-file", usage: "accept the users in `FILE`, a NAME:SECRET on each line"},
		{path: "cert", flag: "cert", usage: "certificate chain of a public CA, PEM `FILE`, read again when it changes (with --key)"},
		{path: "key", flag: "key", usage: "its private key, PEM `FILE`"},
		{path: "hold", flag: "hold", usage: "keep the associations of a client that lost its connection for `TIME`, with their addresses; 0 ends them at once"},
		{path: "drain", flag: "drain", usage: "on SIGTERM first tell clients to go elsewhere and serve those who do not for `TIME`; SIGINT or a second SIGTERM cuts it short", shown: "0: end at once"},
		deadOption("dead"), memoryOption,
	}, exitOptions, logOptions),

	"client": slices.Concat([]option{
		{path: "link_file", flag: "link-file", usage: "read the links from `FILE`, one on a line"},
		{path: "entrance.listen", flag: "listen", usage: "listen for SOCKS5 on `HOST:PORT`"},
	}, entranceOptions, []option{
		{path: "transport", flag: "transport", usage: "`KIND` is quic, yamux or auto: both, each falling over to the other"},
		{path: "streams", flag: "streams", usage: "carry TCP over `KIND` first: quic, yamux or auto, which is yamux unless losses make that slow"},
		{path: "pick", flag: "pick", usage: "among several servers use the first that works, order, or the one with the lowest round-trip time, fastest (`HOW`)"},
		{path: "timers.suspect", flag: "suspect", usage: "leave a connection of the tunnel that gives no sign of life, or loses half, for `TIME` while in use"},
		{path: "timers.suspect_idle", flag: "suspect-idle", usage: "the same while nothing uses it (`TIME`)"},
		{path: "timers.steady", flag: "steady", usage: "return to it when it has worked well for `TIME`; each relapse doubles that, up to a minute"},
		deadOption("timers.dead"), memoryOption,
		{path: "state_dir", flag: "state-dir", usage: "keep state in `DIR`", shown: "/var/lib/wmproxy/client for root, else ~/.local/state/wmproxy/client"},
		noOffloadOption,
	}, logOptions),

	"proxy": slices.Concat([]option{
		{path: "entrance.listen", flag: "bind", short: "b", usage: "listen for SOCKS5 on `HOST[:PORT]`, port 8090 when none is given"},
		{path: "state_dir", flag: "state-dir", usage: "have the socket that wmproxy status asks on in `DIR`", shown: "/var/lib/wmproxy/proxy for root, else ~/.local/state/wmproxy/proxy"},
		memoryOption,
	}, entranceOptions, exitOptions, logOptions),
}

var entranceOptions = []option{
	{path: "entrance.user", flag: "user", usage: "ask applications for this user `NAME` (with --pass or --pass-file)"},
	{path: "entrance.pass", flag: "pass", or: "pass-file", usage: "ask applications for this `PASSWORD`; other users of this machine can see it here (ps), so rather use --pass-file or the environment"},
	{path: "entrance.pass_file", flag: "pass-file", or: "pass", usage: "read the password from the first line of `FILE`"},
	{path: "entrance.open", flag: "open", usage: "listen beyond loopback without a password, for everyone who can reach the port"},
	{path: "entrance.udp_advertise", flag: "udp", usage: "tell applications to send their UDP to `ADDR` (behind NAT or Docker: the address they know this machine by)"},
	{path: "entrance.udp_ports", flag: "udp-port", usage: "take UDP on a port out of `PORT-PORT`, or on the single PORT, which associations then share"},
	{path: "entrance.udp_from", flag: "udp-from", usage: "take UDP also from addresses in `CIDR`, not only from the one that asked; may be repeated"},
	{path: "entrance.udp_answers", flag: "udp-answers", usage: "an application that sent UDP to a name gets answers from that name, or from the address behind it (`KIND`: name, address)"},
}

var exitOptions = []option{
	{path: "exit.allow", flag: "allow", usage: "let destinations in `CIDR` through that are refused by default (private, loopback, this machine); may be repeated"},
	{path: "exit.deny", flag: "deny", usage: "refuse destinations in `CIDR`, also where --allow lets them through; may be repeated"},
	{path: "exit.udp_idle", flag: "udp-idle", usage: "close the socket of a UDP association that neither sends nor hears anything for `TIME` (see the README); its next datagram opens another"},
	{path: "exit.filtering", flag: "filtering", usage: "which remotes reach an association: `KIND` is endpoint-independent, address or address-and-port"},
	noOffloadOption,
}

var logOptions = []option{
	{path: "log.format", flag: "log-format", usage: "`FORMAT` is console, json, or auto: console on a terminal, json otherwise"},
	{path: "log.level", flag: "log-level", usage: "`LEVEL` is debug, info, warn or error"},
	{path: "debug", flag: "debug", usage: "serve Go profiles (/debug/pprof/) and counts of goroutines, memory and descriptors (/debug/runtime) over HTTP on `ADDRESS:PORT`, which every user of this machine can then read; loopback addresses only", shown: "off"},
}

var (
	memoryOption    = option{path: "memory", flag: "memory", usage: "hold at most `SIZE` (such as 256MiB) in memory for peers: bytes that wait for slow readers, here and in the kernel; near it the user who holds most loses streams that stand still", shown: "a quarter of the machine's or the cgroup's, at least 64MiB"}
	noOffloadOption = option{path: "no_offload", flag: "no-offload", usage: "never hand the kernel several UDP datagrams as one (for network cards that damage them)"}
)

func deadOption(path string) option {
	return option{path: path, flag: "dead", usage: "close a connection of the tunnel without a sign of life for `TIME`, and reset its TCP streams"}
}

// optionOf returns the option of a command's flag. The zero option is that of flags
// without a field.
func optionOf(command, flag string) option {
	for _, o := range options[command] {
		if o.flag == flag {
			return o
		}
	}
	return option{}
}

// configFlags returns the flags of a command, whose defaults are those of tree.
func configFlags(command string, tree any) (flags []cli.Flag) {
	fields := config.Fields(tree)
	for _, o := range options[command] {
		f := fields[o.path]
		switch v := f.Value().(type) {
		case bool:
			flags = append(flags, &cli.BoolFlag{Name: o.flag, Usage: o.usage, DisableDefaultText: true})
		case time.Duration:
			flags = append(flags, &cli.DurationFlag{Name: o.flag, Usage: o.usage, Value: v, DefaultText: o.shown})
		default:
			if f.IsList() {
				flags = append(flags, &cli.StringSliceFlag{Name: o.flag, Usage: o.usage, DefaultText: o.shown, KeepSpace: true})
				continue
			}
			flag := &cli.StringFlag{Name: o.flag, Usage: o.usage, Value: word(v), DefaultText: o.shown}
			if o.short != "" {
				flag.Aliases = []string{o.short}
			}
			flags = append(flags, flag)
		}
	}
	return flags
}

// word returns the text of an option whose values are words; others have no default that
// help shows.
func word(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case config.Filtering:
		return v.String()
	}
	return ""
}

// fill sets the fields of tree whose flags were given.
func (p *program) fill(c *cli.Context, tree any) error {
	fields := config.Fields(tree)
	for _, o := range options[c.Command.Name] {
		if !c.IsSet(o.flag) {
			continue
		}
		f, texts := fields[o.path], c.StringSlice(o.flag)
		if !f.IsList() {
			texts = []string{fmt.Sprint(c.Value(o.flag))}
		}
		if err := f.Set(texts...); err != nil {
			return p.misconfigured(err)
		}
	}
	return nil
}

// misconfigured turns an error of the configuration into one of usage, which names the
// flags beside the fields.
func (p *program) misconfigured(err error) error {
	var wrong *config.Error
	if !errors.As(err, &wrong) {
		return err
	}
	var names []string
	for _, path := range wrong.Paths {
		for _, o := range options[p.command] {
			if o.path == path {
				path += " (" + p.origin(o.flag) + ")"
				break
			}
		}
		names = append(names, path)
	}
	return usageErrorf("%s: %s", strings.Join(names, " and "), wrong.Message)
}
