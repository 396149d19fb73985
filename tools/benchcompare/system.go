package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"wmproxy/internal/tune"
	"wmproxy/tools/stage"
)

// system is a tunnel to measure.
type system struct {
	name     string
	title    string
	programs []string // must be on PATH
	loads    []string // that it can carry; nil for all
	begin    func(context.Context, *rig) (*peer, error)
	base     string // the system that ratios are to; "" for baseline
}

// carries reports whether the system can carry the load.
func (s system) carries(l load) bool { return len(s.loads) == 0 || slices.Contains(s.loads, l.name) }

// datagrams are the loads that a relay without SOCKS5 can carry.
var datagrams = []string{"64", "200", "1200", "pingpong", "rate"}

// peer is a running system.
type peer struct {
	socks     string // its SOCKS5 address; "" to send directly to the target
	target    string // replaces the target, if set
	processes []*stage.Process
}

func (p *peer) end() {
	for i := len(p.processes) - 1; i >= 0; i-- {
		p.processes[i].End()
	}
}

// rig is the environment of the systems.
type rig struct {
	dir         string // for their files
	arrangement string
	wmproxy     string
	cert, key   string // of 127.0.0.1, for those that need one
	target      string // of the loads
	neighbour   string // the target of the loads beside them
}

const (
	direct   = "direct"
	baseline = "ss" // the denominator of ratios
)

// method is shadowsocks-libev's fastest on CPUs with AES instructions.
const method = "aes-128-gcm"

// secret is the password of all tunnels. They listen on loopback only, during the run.
const secret = "c2VjcmV0LW9mLWJlbmNoIQ=="

var systems = []system{
	{direct, "direct, no proxy", nil, nil, func(context.Context, *rig) (*peer, error) { return &peer{}, nil }, ""},
	{"quic", "wmproxy over QUIC", nil, nil, ours("quic", ""), ""},
	{"yamux", "wmproxy over yamux", nil, nil, ours("yamux", ""), ""},
	{"auto", "wmproxy auto", nil, nil, ours("auto", ""), ""},
	{baseline, "shadowsocks-libev, " + method, []string{"ss-local", "ss-server"}, nil, shadowsocks, ""},
	{"hysteria", "hysteria 2", []string{"hysteria"}, nil, hysteria, ""},
	{"tuic", "sing-box, TUIC", []string{"sing-box"}, nil, tuic, ""},
	{"ss2022", "sing-box, 2022-blake3-aes-128-gcm", []string{"sing-box"}, nil, ss2022, ""},
	{"gost", "gost, relay over mtls", []string{"gost"}, nil, gost, ""},
	{"floor", "two bare relays, UDP", nil, datagrams, floorUDP, ""},
	{"floor-quic", "two bare relays, quic-go", nil, datagrams, floorQUIC, ""},
	{"floor-tls", "two bare relays, TLS", nil, datagrams, floorTLS, ""},
	{"floor-yamux", "two bare relays, yamux", nil, datagrams, floorYamux, ""},
}

// all returns the systems, those of wmproxy that are wanted also without each of the tricks. Ratios of the
// latter are to the same system with all tricks.
func (o *options) all() (all []system) {
	for _, s := range systems {
		all = append(all, s)
		if !slices.Contains([]string{"quic", "yamux", "auto"}, s.name) || !slices.Contains(o.systems, s.name) {
			continue
		}
		for _, trick := range o.without {
			all = append(all, system{
				name: s.name + "-" + trick, title: s.title + ", without " + trick,
				begin: ours(s.name, "-"+trick), base: s.name,
			})
		}
	}
	return all
}

func systemNames() (names []string) {
	for _, s := range systems {
		names = append(names, s.name)
	}
	return names
}

// missing returns the first program of the system that is not installed, or "".
func (s system) missing() string { return stage.Missing(s.programs) }

// pair starts the far end, waits until it listens on TCP at wait, unless that is empty, and
// starts the near end, which serves SOCKS5 at socks.
func (r *rig) pair(ctx context.Context, wait, socks string, far, near []string) (*peer, error) {
	p := &peer{socks: socks}
	server, err := start(r.dir, r.arrangement, far[0], far[1:]...)
	if err != nil {
		return nil, err
	}
	p.processes = append(p.processes, server)
	if wait != "" {
		err = server.Until(ctx, "open port", listens(wait))
	}
	var client *stage.Process
	if err == nil {
		client, err = start(r.dir, r.arrangement, near[0], near[1:]...)
	}
	if err == nil {
		p.processes = append(p.processes, client)
		err = client.Until(ctx, "open port", listens(socks))
	}
	if err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

// addresses returns a free address for the tunnel and one for SOCKS5.
func addresses() (tunnel, socks string, err error) {
	if tunnel, err = freeAddress(); err != nil {
		return "", "", err
	}
	for socks == "" || socks == tunnel {
		if socks, err = freeAddress(); err != nil {
			return "", "", err
		}
	}
	return tunnel, socks, nil
}

func port(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// ours returns a function that starts wmproxy with a transport, and without tricks (docs/TUNING.md).
func ours(transport, tricks string) func(context.Context, *rig) (*peer, error) {
	return func(ctx context.Context, r *rig) (*peer, error) { return r.ours(ctx, transport, tricks) }
}

func (r *rig) ours(ctx context.Context, transport, tricks string) (*peer, error) {
	env := append(os.Environ(), tune.Variable+"="+tricks)
	tunnel, socks, err := addresses()
	if err != nil {
		return nil, err
	}
	state, err := os.MkdirTemp(r.dir, "wmproxy-")
	if err != nil {
		return nil, err
	}
	server, err := startIn(env, r.dir, r.arrangement, r.wmproxy, "server", "--listen", tunnel, "--advertise", tunnel,
		"--state-dir", filepath.Join(state, "server"), "--allow", "127.0.0.0/8")
	if err != nil {
		return nil, err
	}
	p := &peer{socks: socks, processes: []*stage.Process{server}}
	link := filepath.Join(state, "server", "client.link")
	err = server.Until(ctx, "link", func() bool { _, err := os.Stat(link); return err == nil })
	var client *stage.Process
	if err == nil {
		client, err = startIn(env, r.dir, r.arrangement, r.wmproxy, "client", "--link-file", link, "--listen", socks,
			"--transport", transport, "--state-dir", filepath.Join(state, "client"))
	}
	if err == nil {
		p.processes = append(p.processes, client)
		err = client.Until(ctx, "open port", listens(socks))
	}
	if err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

func shadowsocks(ctx context.Context, r *rig) (*peer, error) {
	tunnel, socks, err := addresses()
	if err != nil {
		return nil, err
	}
	return r.pair(ctx, tunnel, socks,
		[]string{"ss-server", "-s", "127.0.0.1", "-p", port(tunnel), "-k", secret, "-m", method, "-u"},
		[]string{"ss-local", "-s", "127.0.0.1", "-p", port(tunnel), "-b", "127.0.0.1", "-l", port(socks), "-k", secret, "-m", method, "-u"})
}

// hysteria does not wait for the server, which listens on UDP alone. Its client keeps trying.
func hysteria(ctx context.Context, r *rig) (*peer, error) {
	tunnel, socks, err := addresses()
	if err != nil {
		return nil, err
	}
	far, err := stage.Write(r.dir, "hysteria-server.yaml", fmt.Sprintf(
		"listen: %s\ntls:\n  cert: %s\n  key: %s\nauth:\n  type: password\n  password: %s\n", tunnel, r.cert, r.key, secret))
	if err != nil {
		return nil, err
	}
	near, err := stage.Write(r.dir, "hysteria-client.yaml", fmt.Sprintf(
		"server: %s\nauth: %s\ntls:\n  insecure: true\nsocks5:\n  listen: %s\n", tunnel, secret, socks))
	if err != nil {
		return nil, err
	}
	return r.pair(ctx, "", socks, []string{"hysteria", "server", "-c", far}, []string{"hysteria", "client", "-c", near})
}

const tuicUser = "2a3f1a6e-6f0b-4a55-9f3c-0d8f6c1d9b11"

func tuic(ctx context.Context, r *rig) (*peer, error) {
	tunnel, socks, err := addresses()
	if err != nil {
		return nil, err
	}
	inbound := fmt.Sprintf(`{"type":"tuic","listen":"127.0.0.1","listen_port":%s,"users":[{"uuid":%q,"password":%q}],"congestion_control":"bbr",
		"tls":{"enabled":true,"alpn":["h3"],"certificate_path":%q,"key_path":%q}}`, port(tunnel), tuicUser, secret, r.cert, r.key)
	outbound := fmt.Sprintf(`{"type":"tuic","server":"127.0.0.1","server_port":%s,"uuid":%q,"password":%q,"congestion_control":"bbr","udp_relay_mode":"native",
		"tls":{"enabled":true,"insecure":true,"alpn":["h3"]}}`, port(tunnel), tuicUser, secret)
	return r.singBox(ctx, "tuic", "", socks, inbound, outbound)
}

func ss2022(ctx context.Context, r *rig) (*peer, error) {
	tunnel, socks, err := addresses()
	if err != nil {
		return nil, err
	}
	inbound := fmt.Sprintf(`{"type":"shadowsocks","listen":"127.0.0.1","listen_port":%s,"method":"2022-blake3-aes-128-gcm","password":%q}`, port(tunnel), secret)
	outbound := fmt.Sprintf(`{"type":"shadowsocks","server":"127.0.0.1","server_port":%s,"method":"2022-blake3-aes-128-gcm","password":%q}`, port(tunnel), secret)
	return r.singBox(ctx, "ss2022", tunnel, socks, inbound, outbound)
}

func (r *rig) singBox(ctx context.Context, name, wait, socks, inbound, outbound string) (*peer, error) {
	const quiet = `"log":{"level":"error"}`
	far, err := stage.Write(r.dir, name+"-server.json", fmt.Sprintf(`{%s,"inbounds":[%s],"outbounds":[{"type":"direct"}]}`, quiet, inbound))
	if err != nil {
		return nil, err
	}
	near, err := stage.Write(r.dir, name+"-client.json", fmt.Sprintf(
		`{%s,"inbounds":[{"type":"socks","listen":"127.0.0.1","listen_port":%s}],"outbounds":[%s]}`, quiet, port(socks), outbound))
	if err != nil {
		return nil, err
	}
	return r.pair(ctx, wait, socks, []string{"sing-box", "run", "-c", far}, []string{"sing-box", "run", "-c", near})
}

func gost(ctx context.Context, r *rig) (*peer, error) {
	tunnel, socks, err := addresses()
	if err != nil {
		return nil, err
	}
	return r.pair(ctx, tunnel, socks,
		[]string{"gost", "-L", "relay+mtls://" + tunnel},
		[]string{"gost", "-L", "socks5://" + socks + "?udp=true", "-F", "relay+mtls://" + tunnel})
}
