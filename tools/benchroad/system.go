//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"wmproxy/internal/netlab"
	"wmproxy/tools/stage"
)

// system is one that the loads run through.
type system struct {
	name     string
	title    string
	programs []string // that must be on PATH
	tcp      bool     // it uses the kernel's TCP on the path, so that its congestion control counts
	// begin starts the far end, and near returns the command of the near end. Both are nil without a proxy.
	begin func(context.Context, *rig) (*stage.Process, error)
	near  func(*rig) []string
}

const direct = "direct"

var systems = []system{
	{name: direct, title: "no proxy", tcp: true},
	ours("quic", "wmproxy over QUIC", false),
	ours("yamux", "wmproxy over yamux", true),
	ours("auto", "wmproxy", true),
	{"hysteria", "hysteria 2", []string{"hysteria"}, false, hysteriaServer, hysteriaClient(false)},
	{"hysteria-told", "hysteria 2, told 90 % of the rate", []string{"hysteria"}, false, hysteriaServer, hysteriaClient(true)},
	{"tuic", "TUIC (sing-box)", []string{"sing-box"}, false, tuicServer, tuicClient},
	{"ss", "shadowsocks-libev", []string{"ss-server", "ss-local"}, true, ssServer, ssClient},
}

func systemNames() (names []string) {
	for _, s := range systems {
		names = append(names, s.name)
	}
	return names
}

// missing is the first program that the system needs and this machine lacks, "" if none.
func (s system) missing() string { return stage.Missing(s.programs) }

// rig is a path's network and the files of the systems on it.
type rig struct {
	*netlab.Net
	path      path
	dir       string
	wmproxy   string
	cert, key string // for the far ends that need one
}

// The far end of a tunnel, and SOCKS5 of its near end.
var (
	tunnel = netip.AddrPortFrom(netlab.ServerAddr(0), 8090).String()
	socks5 = "127.0.0.1:1080"
)

// secret is every tunnel's password. They live in a network of this process, for seconds.
const secret = "c2VjcmV0LW9mLWJlbmNoIQ=="

// peer is a running system.
type peer struct {
	socks     string // empty without a proxy
	processes []*stage.Process
}

func (p *peer) end() {
	for _, process := range slices.Backward(p.processes) {
		process.End()
	}
}

// startFar starts the far end of a system, if it has one.
func (r *rig) startFar(ctx context.Context, s system) (*peer, error) {
	p := &peer{}
	if s.begin == nil {
		return p, nil
	}
	far, err := s.begin(ctx, r)
	if err != nil {
		return nil, err
	}
	p.processes = append(p.processes, far)
	return p, nil
}

// startNear starts the near end. It is not waited for: the loads do that.
func (r *rig) startNear(s system, p *peer) error {
	command := s.near(r)
	near, err := start(r.Home, r.dir, command[0], command[1:]...)
	if err == nil {
		p.processes, p.socks = append(p.processes, near), socks5
	}
	return err
}

func ours(name, title string, tcp bool) system {
	return system{
		name: name, title: title, tcp: tcp,
		begin: func(ctx context.Context, r *rig) (*stage.Process, error) {
			state := filepath.Join(r.dir, "wmproxy-server")
			p, err := start(r.Servers[0], r.dir, r.wmproxy, "server", "--listen", tunnel, "--advertise", tunnel,
				"--state-dir", state, "--allow", netlab.TargetNetwork)
			if err != nil {
				return nil, err
			}
			if err := p.Until(ctx, "link", func() bool { _, err := os.Stat(r.link()); return err == nil }); err != nil {
				p.End()
				return nil, err
			}
			return p, nil
		},
		near: func(r *rig) []string {
			return []string{
				r.wmproxy, "client", "--link-file", r.link(), "--listen", socks5, "--transport", name,
				"--state-dir", filepath.Join(r.dir, "wmproxy-client-"+name),
			}
		},
	}
}

func (r *rig) link() string { return filepath.Join(r.dir, "wmproxy-server", "client.link") }

func hysteriaServer(ctx context.Context, r *rig) (*stage.Process, error) {
	config, err := stage.Write(r.dir, "hysteria-server.yaml", fmt.Sprintf(
		"listen: %s\ntls:\n  cert: %s\n  key: %s\nauth:\n  type: password\n  password: %s\n", tunnel, r.cert, r.key, secret))
	if err != nil {
		return nil, err
	}
	p, err := start(r.Servers[0], r.dir, "hysteria", "server", "--disable-update-check", "-c", config)
	return started(ctx, p, err, "server up and running")
}

// hysteriaClient is for a client that is told the path's rate, or is not.
func hysteriaClient(told bool) func(*rig) []string {
	return func(r *rig) []string {
		text := fmt.Sprintf("server: %s\nauth: %s\ntls:\n  insecure: true\nsocks5:\n  listen: %s\n", tunnel, secret, socks5)
		if told {
			// Its packets' headers count on the path, and not in its rate.
			kbit := r.path.each.Rate / 1000 * 9 / 10
			text += fmt.Sprintf("bandwidth:\n  up: %d kbps\n  down: %d kbps\n", kbit, kbit)
		}
		config, _ := stage.Write(r.dir, "hysteria-client.yaml", text) // a client without it says so
		return []string{"hysteria", "client", "--disable-update-check", "-c", config}
	}
}

const tuicUser = "2a3f1a6e-6f0b-4a55-9f3c-0d8f6c1d9b11"

func tuicServer(ctx context.Context, r *rig) (*stage.Process, error) {
	config, err := stage.Write(r.dir, "tuic-server.json", fmt.Sprintf(`{"log":{"level":"info"},"outbounds":[{"type":"direct"}],"inbounds":[
		{"type":"tuic","listen":%q,"listen_port":8090,"users":[{"uuid":%q,"password":%q}],"congestion_control":"bbr",
		"tls":{"enabled":true,"alpn":["h3"],"certificate_path":%q,"key_path":%q}}]}`,
		netlab.ServerAddr(0), tuicUser, secret, r.cert, r.key))
	if err != nil {
		return nil, err
	}
	p, err := start(r.Servers[0], r.dir, "sing-box", "run", "-c", config)
	return started(ctx, p, err, "sing-box started")
}

func tuicClient(r *rig) []string {
	config, _ := stage.Write(r.dir, "tuic-client.json", fmt.Sprintf(`{"log":{"level":"error"},
		"inbounds":[{"type":"socks","listen":"127.0.0.1","listen_port":1080}],"outbounds":[
		{"type":"tuic","server":%q,"server_port":8090,"uuid":%q,"password":%q,"congestion_control":"bbr","udp_relay_mode":"native",
		"tls":{"enabled":true,"insecure":true,"alpn":["h3"]}}]}`, netlab.ServerAddr(0), tuicUser, secret))
	return []string{"sing-box", "run", "-c", config}
}

const ssMethod = "aes-128-gcm"

func ssServer(ctx context.Context, r *rig) (*stage.Process, error) {
	p, err := start(r.Servers[0], r.dir, "ss-server", "-s", netlab.ServerAddr(0).String(), "-p", "8090", "-k", secret, "-m", ssMethod, "-u")
	return started(ctx, p, err, "listening")
}

func ssClient(*rig) []string {
	return []string{"ss-local", "-s", netlab.ServerAddr(0).String(), "-p", "8090", "-b", "127.0.0.1", "-l", "1080", "-k", secret, "-m", ssMethod, "-u"}
}
