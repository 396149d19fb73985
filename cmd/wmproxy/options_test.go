package main

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/urfave/cli/v2"

	"wmproxy/certs"
	"wmproxy/internal/config"
	"wmproxy/internal/link"
	"wmproxy/internal/probe"
)

const testLink = "wmproxy://alice:s3cret@example.net:8090"

// configOf runs args up to the point where read has turned flags into options.
func configOf[T any](t *testing.T, env map[string]string, read func(*program, *cli.Context) (T, error), args ...string) (T, error) {
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
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}),
}

func TestServerDefaults(t *testing.T) {
	got, err := configOf(t, nil, (*program).serverConfig, "server")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(config.DefaultServer(), got, compare); diff != "" {
		t.Error(diff)
	}
}

func TestServerFlags(t *testing.T) {
	got, err := configOf(t, nil, (*program).serverConfig, "server",
		"--listen", "[::1]:9000", "--transport", "yamux,quic", "--state-dir", "d", "--advertise", "vpn.example.net:443",
		"--token", "alice:a,b:c", "--token", "bob:x", "--token-file", "tokens", "--cert", "c.pem", "--key", "k.pem",
		"--allow", "10.0.0.1/8", "--allow", "::ffff:192.0.2.0/120", "--allow", "fd00::1", "--deny", "10.1.2.3/16", "--deny", "8.8.8.8", "--udp-idle", "30s",
		"--filtering", "address-and-port", "--no-offload", "--hold", "30s", "--drain", "1m", "--dead", "10s", "--memory", "64MiB",
		"--debug", "127.0.0.1:6060", "--log-format", "console", "--log-level", "debug")
	if err != nil {
		t.Fatal(err)
	}
	want := config.Server{
		Listen: "[::1]:9000", Transports: []string{"yamux", "quic"}, Advertise: "vpn.example.net:443",
		Users:     []config.User{{Name: "alice", Token: "a,b:c"}, {Name: "bob", Token: "x"}},
		TokenFile: "tokens",
		Cert:      "c.pem", Key: "k.pem",
		Hold: 30 * time.Second, Drain: time.Minute, Dead: 10 * time.Second,
		Exit: config.Exit{
			Allow:   []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("fd00::1/128")},
			Deny:    []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("8.8.8.8/32")},
			UDPIdle: 30 * time.Second, Filtering: config.AddressAndPort,
		},
		Process: config.Process{
			StateDir: "d", Memory: 64 << 20, NoOffload: true, Debug: netip.MustParseAddrPort("127.0.0.1:6060"),
			Log: config.Log{Format: config.LogConsole, Level: "debug"},
		},
	}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Error(diff)
	}
}

func TestServerReadsItsEnvironment(t *testing.T) {
	got, err := configOf(t, map[string]string{
		"WMPROXY_SERVER_TOKEN":      " alice:a,b  bob:c ", // commas belong to a secret
		"WMPROXY_SERVER_TRANSPORT":  "yamux, quic",
		"WMPROXY_SERVER_ALLOW":      "10.0.0.0/8,192.0.2.1",
		"WMPROXY_SERVER_NO_OFFLOAD": "true",
		"WMPROXY_SERVER_UDP_IDLE":   "1m",
	}, (*program).serverConfig, "server")
	if err != nil {
		t.Fatal(err)
	}
	want := config.DefaultServer()
	want.Users = []config.User{{Name: "alice", Token: "a,b"}, {Name: "bob", Token: "c"}}
	want.Transports = []string{"yamux", "quic"}
	want.Exit.Allow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32")}
	want.Exit.UDPIdle, want.NoOffload = time.Minute, true
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Error(diff)
	}
}

func TestTokenFileAddsUsers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte("# users\n\ncarol:c:d\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config.DefaultServer()
	cfg.Users, cfg.TokenFile = []config.User{{Name: "alice", Token: "a"}}, path
	p, _, _ := testProgram(nil)
	got, err := p.users(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]config.User{{Name: "alice", Token: "a"}, {Name: "carol", Token: "c:d"}}, got); diff != "" {
		t.Error(diff)
	}
}

func TestAdvertiseTakesAHostWithOrWithoutPort(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "192.0.2.1:1": "192.0.2.1:1", "h": "h", "h:443": "h:443",
		"2001:db8::1": "2001:db8::1", "[2001:db8::1]": "2001:db8::1", "[2001:db8::1]:443": "[2001:db8::1]:443",
		":443": "", "h:x": "", "h h": "", "443": "", "h:70000": "",
	} {
		got, err := configOf(t, nil, (*program).serverConfig, "server", "--advertise", text)
		if (err != nil) != (want == "") || err == nil && got.Advertise != want {
			t.Errorf("%q: got %q and %v, want %q", text, got.Advertise, err, want)
		}
	}
}

func TestClientFlags(t *testing.T) {
	id, err := certs.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	pin := id.Pin()
	got, err := configOf(t, nil, (*program).clientConfig, "client", "--listen", "0.0.0.0:2080", "--user", "u",
		testLink+"?pin="+pin.String(), "--pass", "p,q", "--udp", "::ffff:192.0.2.7", "--udp-port", "4000-4001",
		"--udp-from", "172.16.0.0/12", "--udp-answers", "address", "--transport", "quic", "--state-dir", "d", "--no-offload", "--log-level", "warn",
		strings.Replace(testLink, "alice", "bob", 1), "--pick", "fastest", "--streams", "quic",
		"--suspect", "1s", "--suspect-idle", "10s", "--steady", "2s", "--dead", "10s", "--memory", "1GiB", "--open", "--debug", "[::1]:6060", "--log-format", "json")
	if err != nil {
		t.Fatal(err)
	}
	want := config.Client{
		Links: []link.Link{
			{Name: "alice", Secret: "s3cret", Host: "example.net", Port: 8090, Pin: &pin},
			{Name: "bob", Secret: "s3cret", Host: "example.net", Port: 8090},
		},
		Pick: config.PickFastest, Transport: config.QUIC, Streams: config.QUIC,
		Timers: config.Timers{Suspect: time.Second, SuspectIdle: 10 * time.Second, Dead: 10 * time.Second, Steady: 2 * time.Second},
		Entrance: config.Entrance{
			Listen: "0.0.0.0:2080", User: "u", Pass: "p,q", Open: true, UDPAdvertise: netip.MustParseAddr("192.0.2.7"),
			UDPPorts: config.PortRange{First: 4000, Last: 4001}, UDPFrom: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")},
			UDPAnswers: config.AnswersByAddress,
		},
		Process: config.Process{
			StateDir: "d", Memory: 1 << 30, NoOffload: true, Debug: netip.MustParseAddrPort("[::1]:6060"),
			Log: config.Log{Format: config.LogJSON, Level: "warn"},
		},
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
			got, err := configOf(t, test.env, (*program).clientConfig, append([]string{"client"}, test.args...)...)
			name := ""
			if len(got.Links) > 0 {
				name = got.Links[0].Name
			}
			if name != test.want || (test.want == "") != errors.As(err, new(*usageError)) {
				t.Errorf("got %q and %v, want %q", name, err, test.want)
			}
		})
	}
}

func TestPlainFlagsAreTheProxy(t *testing.T) {
	got, err := configOf(t, nil, (*program).proxyConfig, strings.Fields("--user aaa --pass bbb -b 0.0.0.0 --udp 127.0.0.1")...)
	if err != nil {
		t.Fatal(err)
	}
	want := config.DefaultProxy()
	want.Entrance.Listen, want.Entrance.User, want.Entrance.Pass = "0.0.0.0:8090", "aaa", "bbb"
	want.Entrance.UDPAdvertise = netip.MustParseAddr("127.0.0.1")
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Error(diff)
	}
}

func TestTheProxyHasAStateDirectoryToo(t *testing.T) {
	got, err := configOf(t, map[string]string{"WMPROXY_PROXY_STATE_DIR": "d"}, (*program).proxyConfig, "proxy")
	if err != nil || got.StateDir != "d" {
		t.Errorf("%q, %v", got.StateDir, err)
	}
}

func TestTestFlags(t *testing.T) {
	got, err := configOf(t, nil, (*program).testConfig, strings.Fields("test --socks 127.0.0.1:1080 -u U -p P --dns 192.0.2.53 --domain a.example. -a 192.0.2.9 --echo h:7 --timeout 3s")...)
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
			got, err := configOf(t, test.env, (*program).proxyConfig, append([]string{"proxy"}, strings.Fields(test.args)...)...)
			if err == nil && string(got.Entrance.Pass) != test.want || (test.want == "") != errors.As(err, new(*usageError)) {
				t.Errorf("got %q and %v, want %q", string(got.Entrance.Pass), err, test.want)
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
		o, err := configOf(t, nil, (*program).proxyConfig, append([]string{"proxy"}, strings.Fields(test.args)...)...)
		if err != nil {
			t.Fatalf("%s: %v", test.args, err)
		}
		p, _, _ := testProgram(nil)
		if err := p.checkExposure(t.Context(), o.Entrance, "bind"); (err == nil) != test.allowed || err != nil && !errors.As(err, new(*usageError)) {
			t.Errorf("%q: %v", test.args, err)
		}
	}
}

func TestWrongValuesAreRefused(t *testing.T) {
	const hidden = "hunter2"
	run := map[string]func(args ...string) error{
		"server": func(args ...string) error { _, err := configOf(t, nil, (*program).serverConfig, args...); return err },
		"client": func(args ...string) error { _, err := configOf(t, nil, (*program).clientConfig, args...); return err },
		"proxy":  func(args ...string) error { _, err := configOf(t, nil, (*program).proxyConfig, args...); return err },
		"test":   func(args ...string) error { _, err := configOf(t, nil, (*program).testConfig, args...); return err },
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
		format  string
		json    bool
	}{
		{true, config.Auto, false},
		{false, config.Auto, true},
		{true, config.LogJSON, true},
		{false, config.LogConsole, false},
	} {
		p, _, stderr := testProgram(nil)
		p.console = test.console
		p.logger(config.Log{Format: test.format, Level: "info"}).Info("hello")
		if json := strings.HasPrefix(stderr.String(), "{"); json != test.json {
			t.Errorf("%+v: got %s", test, stderr)
		}
	}
}

func TestLogsHideSecrets(t *testing.T) {
	p, _, stderr := testProgram(nil)
	l, err := link.Parse(testLink)
	if err != nil {
		t.Fatal(err)
	}
	client, server := config.DefaultClient(), config.DefaultServer()
	client.Links, client.Entrance.Pass = []link.Link{l}, "s3cret"
	server.Users = []config.User{{Name: "alice", Token: "s3cret"}}
	for _, format := range []string{config.LogConsole, config.LogJSON} {
		log := p.logger(config.Log{Format: format, Level: "info"})
		log.Info("hello", "link", l, "pass", client.Entrance.Pass, "client", client, "server", &server)
		log.Debug("quiet")
	}
	out := stderr.String()
	if strings.Count(out, "hello") != 2 || strings.Contains(out, "quiet") || strings.Contains(out, "s3cret") || strings.Contains(out, "\x1b") {
		t.Errorf("got %s", out)
	}
}

// Every field of a configuration has a flag; links are arguments.
func TestEveryFieldHasAFlag(t *testing.T) {
	client, server, proxy := config.DefaultClient(), config.DefaultServer(), config.DefaultProxy()
	for command, tree := range map[string]any{"client": &client, "server": &server, "proxy": &proxy} {
		fields := config.Fields(tree)
		delete(fields, "links")
		want := slices.Sorted(maps.Keys(fields))
		var got []string
		for _, o := range options[command] {
			got = append(got, o.path)
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the fields of %s (-) and its flags (+): %s", command, diff)
		}
	}
}

func TestErrorsNameFieldAndFlag(t *testing.T) {
	for _, test := range []struct {
		args, want string
		env        map[string]string
	}{
		{args: "proxy --udp-from x", want: `entrance.udp_from (--udp-from): must be a network such as 10.0.0.0/8 or fd00::/8, not "x"`},
		{args: "proxy", env: map[string]string{"WMPROXY_PROXY_UDP_PORT": "x"}, want: "entrance.udp_ports (WMPROXY_PROXY_UDP_PORT): must be a port or a rising range such as 40000-40999, from 1 to 65535"},
		{args: "proxy --user u", want: "entrance.user (--user) and entrance.pass (--pass): they go together; give a user and a password, or neither"},
		{args: "proxy --udp-idle 25h", want: "exit.udp_idle (--udp-idle): must be from 1s to 24h"},
		{args: "server --cert c", want: "cert (--cert) and key (--key): they go together; give both or neither"},
		{args: "server --token a", want: "users (--token): a token must be written NAME:SECRET"},
		{args: "server --hold soon", want: "hold (--hold): must be a duration such as 30s or 5m"},
	} {
		p, _, stderr := testProgram(test.env)
		if code := p.run(t.Context(), strings.Fields(test.args)); code != exitUsage {
			t.Errorf("%s: exit code %d", test.args, code)
		}
		if got := stderr.String(); got != "wmproxy: "+test.want+"\n" {
			t.Errorf("%s: got %s", test.args, got)
		}
	}
}
