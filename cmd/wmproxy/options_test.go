package main

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/urfave/cli/v2"

	"wmproxy/certs"
	"wmproxy/client"
	"wmproxy/internal/egress"
	"wmproxy/internal/link"
	"wmproxy/internal/probe"
	"wmproxy/internal/standalone"
	"wmproxy/server"
	"wmproxy/socks"
)

const testLink = "wmproxy://alice:s3cret@example.net:8090"

// options runs args up to the point where read has turned flags into options.
func options[T any](t *testing.T, env map[string]string, read func(*program, *cli.Context) (T, error), args ...string) (T, error) {
	t.Helper()
	p, _, _ := testProgram(env)
	app := p.app()
	var o T
	reached := false
	for _, command := range app.Commands {
		command.Action = func(c *cli.Context) (err error) {
			reached = true
			o, err = read(p, c)
			return err
		}
	}
	line, err := p.arrange(app, args)
	if err == nil {
		err = app.RunContext(t.Context(), line)
	}
	if err == nil && !reached {
		t.Fatal("no command was reached")
	}
	return o, err
}

var compare = cmp.Options{
	cmp.AllowUnexported(serverOptions{}, clientOptions{}, proxyOptions{}, entranceOptions{}, logOptions{}),
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}),
	cmpopts.IgnoreFields(server.Config{}, "Started", "ReadTokens"),
}

func TestServerDefaults(t *testing.T) {
	got, err := options(t, nil, (*program).serverOptions, "server")
	if err != nil {
		t.Fatal(err)
	}
	want := serverOptions{
		config: server.Config{
			Listen: ":8090", Transports: []string{"quic", "yamux"},
			UDPIdle: 5 * time.Minute, Filtering: egress.EndpointIndependent,
			Hold: 2 * time.Minute, Dead: 30 * time.Second,
		},
		log: logOptions{format: logJSON, level: slog.LevelInfo},
	}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Error(diff)
	}
}

func TestServerFlags(t *testing.T) {
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte("# users\n\ncarol:c:d\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := options(t, nil, (*program).serverOptions, "server",
		"--listen", "[::1]:9000", "--transport", "yamux,quic", "--state-dir", "d", "--advertise", "vpn.example.net:443",
		"--token", "alice:a,b:c", "--token", "bob:x", "--token-file", tokens, "--cert", "c.pem", "--key", "k.pem",
		"--allow", "10.0.0.1/8", "--allow", "::ffff:192.0.2.0/120", "--allow", "fd00::1", "--deny", "10.1.2.3/16", "--deny", "8.8.8.8", "--udp-idle", "30s",
		"--filtering", "address-and-port", "--no-offload", "--hold", "30s", "--drain", "1m", "--dead", "10s", "--log-format", "console", "--log-level", "debug")
	if err != nil {
		t.Fatal(err)
	}
	want := serverOptions{
		config: server.Config{
			Listen: "[::1]:9000", Transports: []string{"yamux", "quic"}, Advertise: "vpn.example.net:443",
			Tokens:   []link.Token{{Name: "alice", Secret: "a,b:c"}, {Name: "bob", Secret: "x"}, {Name: "carol", Secret: "c:d"}},
			CertFile: "c.pem", KeyFile: "k.pem",
			Allow:   []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("fd00::1/128")},
			Deny:    []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("8.8.8.8/32")},
			UDPIdle: 30 * time.Second, Filtering: egress.AddressAndPort, NoOffload: true,
			Hold: 30 * time.Second, Drain: time.Minute, Dead: 10 * time.Second,
		},
		stateDir: "d",
		log:      logOptions{format: logConsole, level: slog.LevelDebug},
	}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Error(diff)
	}
}

func TestServerReadsItsEnvironment(t *testing.T) {
	got, err := options(t, map[string]string{
		"WMPROXY_SERVER_TOKEN":      "alice:a,bob:b",
		"WMPROXY_SERVER_TRANSPORT":  "quic,yamux",
		"WMPROXY_SERVER_NO_OFFLOAD": "true",
		"WMPROXY_SERVER_UDP_IDLE":   "1m",
	}, (*program).serverOptions, "server")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]link.Token{{Name: "alice", Secret: "a"}, {Name: "bob", Secret: "b"}}, got.config.Tokens); diff != "" {
		t.Error(diff)
	}
	if len(got.config.Transports) != 2 || !got.config.NoOffload || got.config.UDPIdle != time.Minute {
		t.Errorf("got %+v", got.config)
	}
}

func TestAdvertiseTakesAHostWithOrWithoutPort(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "192.0.2.1:1": "192.0.2.1:1", "h": "h", "h:443": "h:443",
		"2001:db8::1": "2001:db8::1", "[2001:db8::1]": "2001:db8::1", "[2001:db8::1]:443": "[2001:db8::1]:443",
		":443": "", "h:x": "", "h h": "", "443": "", "h:70000": "",
	} {
		got, err := options(t, nil, (*program).serverOptions, "server", "--advertise", text)
		if (err != nil) != (want == "") || got.config.Advertise != want {
			t.Errorf("%q: got %q and %v, want %q", text, got.config.Advertise, err, want)
		}
	}
}

func TestClientFlags(t *testing.T) {
	id, err := certs.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	pin := id.Pin()
	got, err := options(t, nil, (*program).clientOptions, "client", "--listen", "0.0.0.0:2080", "--user", "u",
		testLink+"?pin="+pin.String(), "--pass", "p,q", "--udp", "::ffff:192.0.2.7", "--udp-port", "4000-4001",
		"--udp-from", "172.16.0.0/12", "--udp-answers", "address", "--transport", "quic", "--state-dir", "d", "--no-offload", "--log-level", "warn",
		strings.Replace(testLink, "alice", "bob", 1), "--pick", "fastest", "--suspect", "1s", "--dead", "10s")
	if err != nil {
		t.Fatal(err)
	}
	addr, from := netip.MustParseAddr("192.0.2.7"), []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}
	ports := socks.PortRange{First: 4000, Last: 4001}
	want := clientOptions{
		config: client.Config{
			Links: []link.Link{
				{Name: "alice", Secret: "s3cret", Host: "example.net", Port: 8090, Pin: &pin},
				{Name: "bob", Secret: "s3cret", Host: "example.net", Port: 8090},
			},
			Pick:   client.Fastest,
			Timers: client.Timers{Suspect: time.Second, SuspectIdle: 20 * time.Second, Dead: 10 * time.Second, Steady: 5 * time.Second},
			Listen: "0.0.0.0:2080", User: "u", Pass: "p,q", UDPAdvertise: addr, UDPPorts: ports, UDPFrom: from, AddressAnswers: true,
			Transport: client.QUIC, Streams: client.Auto, NoOffload: true,
		},
		entrance: entranceOptions{listen: "0.0.0.0:2080", listenFlag: "listen", user: "u", pass: "p,q", advertise: addr, ports: ports, from: from, addressAnswers: true},
		stateDir: "d",
		log:      logOptions{format: logJSON, level: slog.LevelWarn},
	}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Error(diff)
	}
}

func TestTheLinkComesFromOnePlace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "client.link")
	if err := os.WriteFile(file, []byte(strings.Replace(testLink, "alice", "file", 1)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fromEnv := strings.Replace(testLink, "alice", "env", 1)
	for _, test := range []struct {
		name, want string // empty: wrong usage
		env        map[string]string
		args       []string
	}{
		{"argument", "alice", nil, []string{testLink}},
		{"file", "file", nil, []string{"--link-file", file}},
		{"environment", "env", map[string]string{"WMPROXY_LINK": fromEnv}, nil},
		{"file from the environment", "file", map[string]string{"WMPROXY_CLIENT_LINK_FILE": file}, nil},
		{"argument over environment", "alice", map[string]string{"WMPROXY_LINK": fromEnv, "WMPROXY_CLIENT_LINK_FILE": file}, []string{testLink}},
		{"file over environment", "file", map[string]string{"WMPROXY_LINK": fromEnv}, []string{"--link-file", file}},
		{"argument and file", "", nil, []string{testLink, "--link-file", file}},
		{"both in the environment", "", map[string]string{"WMPROXY_LINK": fromEnv, "WMPROXY_CLIENT_LINK_FILE": file}, nil},
		{"none", "", nil, nil},
		{"empty environment", "", map[string]string{"WMPROXY_LINK": ""}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := options(t, test.env, (*program).clientOptions, append([]string{"client"}, test.args...)...)
			name := ""
			if len(got.config.Links) > 0 {
				name = got.config.Links[0].Name
			}
			if name != test.want || (test.want == "") != errors.As(err, new(*usageError)) {
				t.Errorf("got %q and %v, want %q", name, err, test.want)
			}
		})
	}
}

func TestPlainFlagsAreTheProxy(t *testing.T) {
	got, err := options(t, nil, (*program).proxyOptions, strings.Fields("--user aaa --pass bbb -b 0.0.0.0 --udp 127.0.0.1")...)
	if err != nil {
		t.Fatal(err)
	}
	want := standalone.Config{
		Bind: "0.0.0.0:8090", User: "aaa", Pass: "bbb", UDPAdvertise: netip.MustParseAddr("127.0.0.1"),
		UDPIdle: 5 * time.Minute, Filtering: egress.EndpointIndependent,
	}
	if diff := cmp.Diff(want, got.config, compare); diff != "" {
		t.Error(diff)
	}
}

func TestTheProxyHasAStateDirectoryToo(t *testing.T) {
	got, err := options(t, map[string]string{"WMPROXY_PROXY_STATE_DIR": "d"}, (*program).proxyOptions, "proxy")
	if err != nil || got.stateDir != "d" {
		t.Errorf("%q, %v", got.stateDir, err)
	}
}

func TestTestFlags(t *testing.T) {
	got, err := options(t, nil, (*program).testConfig, strings.Fields("test --socks 127.0.0.1:1080 -u U -p P --dns 192.0.2.53 --domain a.example. -a 192.0.2.9 --echo h:7 --timeout 3s")...)
	if err != nil {
		t.Fatal(err)
	}
	want := probe.Config{
		Socks: "127.0.0.1:1080", Username: "U", Password: "P", DNS: "192.0.2.53:53", Domain: "a.example",
		Expect: netip.MustParseAddr("192.0.2.9"), Echo: "h:7", Timeout: 3 * time.Second,
	}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Error(diff)
	}
}

func TestAPasswordComesFromOnePlace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(file, []byte("from file\r\nsecond line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, want string // empty: wrong usage
		env        map[string]string
		args       string
	}{
		{"typed", "p", nil, "--user u --pass p"},
		{"file", "from file", nil, "--user u --pass-file " + file},
		{"environment", "e", map[string]string{"WMPROXY_PROXY_PASS": "e"}, "--user u"},
		{"typed file over environment", "from file", map[string]string{"WMPROXY_PROXY_PASS": "e"}, "--user u --pass-file " + file},
		{"typed over file of the environment", "p", map[string]string{"WMPROXY_PROXY_PASS_FILE": file}, "--user u --pass p"},
		{"both", "", nil, "--user u --pass p --pass-file " + file},
		{"no user", "", nil, "--pass p"},
		{"no password", "", nil, "--user u"},
		{"too long", "", nil, "--user u --pass " + strings.Repeat("x", 256)},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := options(t, test.env, (*program).proxyOptions, append([]string{"proxy"}, strings.Fields(test.args)...)...)
			if got.config.Pass != test.want || (test.want == "") != errors.As(err, new(*usageError)) {
				t.Errorf("got %q and %v, want %q", got.config.Pass, err, test.want)
			}
		})
	}
}

func TestListeningBeyondLoopbackNeedsAPasswordOrOpen(t *testing.T) {
	for _, test := range []struct {
		args    string
		allowed bool
	}{
		{"", true},
		{"-b 127.0.0.1", true},
		{"-b 127.9.9.9:1", true},
		{"-b [::1]", true},
		{"-b ::1", true},
		{"-b [::ffff:127.0.0.1]:1", true},
		{"-b localhost", true},
		{"-b 0.0.0.0", false},
		{"-b :8090", false},
		{"-b [::]:8090", false},
		{"-b 192.0.2.1", false},
		{"-b [::ffff:192.0.2.1]:1", false},
		{"-b 0.0.0.0 --open", true},
		{"-b 0.0.0.0 --user u --pass p", true},
	} {
		o, err := options(t, nil, (*program).proxyOptions, append([]string{"proxy"}, strings.Fields(test.args)...)...)
		if err != nil {
			t.Fatalf("%s: %v", test.args, err)
		}
		p, _, _ := testProgram(nil)
		if err := p.checkExposure(t.Context(), o.entrance); (err == nil) != test.allowed || err != nil && !errors.As(err, new(*usageError)) {
			t.Errorf("%q: %v", test.args, err)
		}
	}
}

func TestWrongValuesAreRefused(t *testing.T) {
	const hidden = "hunter2"
	run := map[string]func(args ...string) error{
		"server": func(args ...string) error { _, err := options(t, nil, (*program).serverOptions, args...); return err },
		"client": func(args ...string) error { _, err := options(t, nil, (*program).clientOptions, args...); return err },
		"proxy":  func(args ...string) error { _, err := options(t, nil, (*program).proxyOptions, args...); return err },
		"test":   func(args ...string) error { _, err := options(t, nil, (*program).testConfig, args...); return err },
	}
	for _, line := range []string{
		"server --listen 8090", "server --listen h:p", "server --listen h:70000", "server --listen [::1", "server --listen =",
		"server --transport tcp", "server --transport quic,,yamux", "server --token " + hidden, "server --token a/b:" + hidden,
		"server --token a:" + hidden + " --token a:" + hidden + "2", "server --cert c", "server --key k", "server --allow 10.0.0.0/33",
		"server --allow local", "server --deny 8.8.8.8:53", "proxy --deny x", "server --udp-idle 0s", "server --udp-idle -5m", "server --udp-idle 25h", "server --filtering none",
		"server --log-level loud", "server --log-format xml",
		"client http://" + hidden, "client wmproxy://a:" + hidden, "client wmproxy://a:" + hidden + "@h:1?pin=x",
		"client " + testLink + " --transport tcp", "client " + testLink + " --transport quic --streams yamux",
		"proxy --udp localhost", "proxy --udp 224.0.0.1", "proxy --udp-port 0", "proxy --udp-port 2-1", "proxy --udp-port 1-", "proxy --udp-port 1-70000", "proxy --udp-from x", "proxy --udp-answers both",
		"test", "test --socks :1080", "test --socks h:0", "test --socks h --user u", "test --socks h --address ::1", "test --socks h --timeout 0s", "test --socks h --domain .",
	} {
		words := strings.Fields(line)
		err := run[words[0]](words...)
		if !errors.As(err, new(*usageError)) {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if strings.Contains(err.Error(), hidden) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestConsoleOnATerminalAndJSONElsewhere(t *testing.T) {
	for _, test := range []struct {
		console bool
		args    string
		want    string
	}{
		{true, "", logConsole},
		{false, "", logJSON},
		{true, "--log-format json", logJSON},
		{false, "--log-format console", logConsole},
	} {
		read := func(p *program, c *cli.Context) (logOptions, error) {
			p.console = test.console
			return p.logOptions(c)
		}
		got, err := options(t, nil, read, append([]string{"server"}, strings.Fields(test.args)...)...)
		if err != nil || got.format != test.want {
			t.Errorf("terminal %v %s: got %+v and %v", test.console, test.args, got, err)
		}
	}
	p, _, stderr := testProgram(nil)
	l, err := link.Parse(testLink)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{logConsole, logJSON} {
		p.logger(logOptions{format: format, level: slog.LevelInfo}).Info("hello", "link", l, "token", l.Token())
		p.logger(logOptions{format: format, level: slog.LevelInfo}).Debug("quiet")
	}
	out := stderr.String()
	if strings.Count(out, "hello") != 2 || strings.Contains(out, "quiet") || strings.Contains(out, "s3cret") || strings.Contains(out, "\x1b") {
		t.Errorf("got %s", out)
	}
}
