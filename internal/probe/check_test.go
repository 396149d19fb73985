package probe

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wmproxy/internal/bench"
	"wmproxy/internal/testmain"
	"wmproxy/socks"
)

func TestMain(m *testing.M) { testmain.Run(m) }

// lossInterval is long enough for a reply on a busy machine; each datagram that is lost takes it.
const lossInterval = 2 * time.Second

func startEcho(t *testing.T) socks.Addr {
	t.Helper()
	e, err := bench.ListenEcho(netip.MustParseAddrPort("127.0.0.1:0"), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return socks.AddrFrom(e.Addr())
}

var testNames = map[string]Records{
	"demo.test": {
		A:    []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")},
		AAAA: []netip.Addr{netip.MustParseAddr("2001:db8::1")},
		TXT:  []string{"hello"},
	},
	"big.test": {TXT: []string{strings.Repeat("a", 250), strings.Repeat("b", 250), strings.Repeat("c", 250)}},
}

func startDNS(t *testing.T) *DNS {
	t.Helper()
	d, err := ListenDNS("127.0.0.1:0", testNames)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// hasLines fails the test for each of want that got does not contain.
func hasLines(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("missing %q in:\n%s", w, got)
		}
	}
}

func TestCheckPassesWithGoodServer(t *testing.T) {
	echo, dns := startEcho(t), startDNS(t)
	tests := []struct {
		name  string
		fake  *fakeSocks
		cfg   Config
		lines []string
	}{
		{"DNS", &fakeSocks{}, Config{DNS: dns.Addr().String(), Domain: "demo.test"}, []string{
			"TCP CONNECT to 127.0.0.1:", "dial: connected", "greeting: it speaks", "CONNECT reply: BND 127.0.0.1:",
			"DNS answer: demo.test is [192.0.2.1 192.0.2.2]", "TCP: OK\n",
			"ASSOCIATE reply: BND 127.0.0.1:", "datagram 1 of 3 sent: 27 bytes by way of 127.0.0.1:",
			"reply: 77 bytes from " + dns.Addr().String(), "UDP: OK\n",
		}},
		{"the expected address", &fakeSocks{}, Config{DNS: dns.Addr().String(), Domain: "DEMO.test.", Expect: netip.MustParseAddr("192.0.2.2")}, []string{"TCP: OK\n", "UDP: OK\n"}},
		{"a named target", &fakeSocks{}, Config{DNS: socks.Addr{Name: "dns.example", Port: dns.Addr().Port}.String(), Domain: "demo.test"}, []string{"TCP: OK\n", "UDP: OK\n"}},
		{"authentication", &fakeSocks{user: "u", pass: "p"}, Config{Username: "u", Password: "p", Echo: echo.String()}, []string{
			"authentication: accepted", "echo: 4096 bytes and the end came back", "TCP: OK\n", "echo: 64 bytes unchanged", "UDP: OK\n",
		}},
		{"the first datagram lost", &fakeSocks{lose: 1}, Config{Echo: echo.String()}, []string{"datagram 2 of 3 sent", "UDP: OK\n"}},
		{"BND unspecified", &fakeSocks{bound: func(real netip.AddrPort) socks.Addr {
			return socks.Addr{IP: netip.IPv4Unspecified(), Port: real.Port()}
		}}, Config{Echo: echo.String()}, []string{
			"ASSOCIATE reply: BND 0.0.0.0:", "hint: the server sent BND.ADDR 0.0.0.0; used its address 127.0.0.1 instead", "--udp ADDR", "UDP: OK\n",
		}},
		{"BND a name, with control characters", &fakeSocks{bound: func(real netip.AddrPort) socks.Addr {
			return socks.Addr{Name: "so\x1b[31mcks", Port: real.Port()}
		}}, Config{Echo: echo.String()}, []string{
			`BND so\x1b[31mcks:`, "hint: the server sent a name as BND.ADDR", "UDP: OK\n",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.fake.start(t)
			tt.cfg.Socks = tt.fake.addr()
			tt.cfg.Interval = lossInterval
			var out strings.Builder
			if !Check(t.Context(), tt.cfg, &out) {
				t.Error("Check returned false")
			}
			hasLines(t, out.String(), tt.lines...)
			if strings.Contains(out.String(), "\x1b") {
				t.Error("a control character reached the output")
			}
		})
	}
}

func TestCheckNamesFailedStepAndCause(t *testing.T) {
	echo, dns := startEcho(t), startDNS(t)
	// A port on which nothing listens.
	closed := func() string {
		udp, tcp, err := listenBoth("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		defer tcp.Close()
		return tcp.Addr().String()
	}()
	viaEcho := Config{Echo: echo.String()}
	viaDNS := Config{DNS: dns.Addr().String(), Domain: "demo.test"}
	with := func(c Config, change func(*Config)) Config {
		change(&c)
		return c
	}
	lie := func(real netip.AddrPort) socks.Addr {
		return socks.AddrFrom(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), real.Port()))
	}
	tests := []struct {
		name     string
		fake     *fakeSocks
		cfg      Config
		tcp, udp string // "" for OK
		sent     int32  // datagrams that the server must get
	}{
		{
			"nothing listens", &fakeSocks{}, with(viaEcho, func(c *Config) { c.Socks = closed }),
			"dial: nothing listens on " + closed, "dial: nothing listens on " + closed, 0,
		},
		{
			"not SOCKS5", &fakeSocks{greeting: []byte("HTTP/1.1 400\r\n")}, viaEcho,
			"greeting: 127.0.0.1:", "greeting: 127.0.0.1:", 0,
		},
		{
			"closed at the greeting", &fakeSocks{greeting: []byte{}}, viaEcho,
			"greeting: the server closed the connection; it is not a SOCKS5 server", "greeting: the server closed", 0,
		},
		{
			"silent at the greeting", &fakeSocks{silent: true}, with(viaEcho, func(c *Config) { c.Timeout = 30 * time.Millisecond }),
			"greeting: the server does not answer", "greeting: the server does not answer", 0,
		},
		{
			"authentication demanded", &fakeSocks{user: "u", pass: "p"}, viaEcho,
			"greeting: the server demands authentication; give a user name and a password with -u and -p.", "greeting: the server demands authentication", 0,
		},
		{
			"authentication refused", &fakeSocks{user: "u", pass: "p"}, with(viaEcho, func(c *Config) { c.Username, c.Password = "u", "wrong" }),
			"authentication: the server refused the user name or password; check -u and -p.", "authentication: the server refused", 0,
		},
		{
			"closed at authentication", &fakeSocks{user: "u", pass: "p", hangUpAt: "authentication"}, with(viaEcho, func(c *Config) { c.Username = "u" }),
			"authentication: the server closed the connection on the user name", "authentication: the server closed", 0,
		},
		{
			"refused by rule", &fakeSocks{reply: socks.ReplyNotAllowed}, viaEcho,
			"CONNECT reply: the server replied 2 (not allowed by its rules); the server's rules forbid " + echo.String(),
			"ASSOCIATE reply: the server replied 2 (not allowed by its rules); the server's rules forbid UDP", 0,
		},
		{
			"no such command", &fakeSocks{reply: socks.ReplyCommandUnsupported}, viaEcho,
			"does not offer CONNECT", "does not offer ASSOCIATE", 0,
		},
		{
			"closed instead of a reply", &fakeSocks{hangUpAt: "reply"}, viaEcho,
			"CONNECT reply: the server closed the connection without a reply", "ASSOCIATE reply: the server closed", 0,
		},
		{
			"malformed reply", &fakeSocks{rawReply: []byte{5, 0, 0, 2, 0, 0}}, viaEcho,
			"CONNECT reply: malformed answer: reply with address type 2", "breaks RFC 1928", 0,
		},
		{
			"target refuses TCP", &fakeSocks{}, with(viaEcho, func(c *Config) { c.Echo = closed }),
			"nothing listens on that TCP port", "no reply to 2 datagrams: nothing listens on that TCP port of " + closed + ", as the server told CONNECT", 2,
		},
		{
			"no UDP reply", &fakeSocks{dropUDP: true}, viaEcho,
			"", "reply: no reply to 2 datagrams; UDP is lost behind the server, at a firewall or on its way out (wmproxy client: that of its server), or " + echo.String() + " does not answer over UDP", 2,
		},
		{
			"rules forbid the target", &fakeSocks{refuse: socks.ReplyNotAllowed, dropUDP: true}, viaEcho,
			"the server's rules forbid " + echo.String() + "; choose another target, or allow it there (wmproxy server or proxy: --allow).",
			"reply: no reply to 2 datagrams: the server's rules forbid " + echo.String() + ", as it told CONNECT, and it drops such datagrams without a word; choose another target, or allow it there (wmproxy server or proxy: --allow).", 2,
		},
		{
			"no way to the target", &fakeSocks{refuse: socks.ReplyHostUnreachable, dropUDP: true}, viaEcho,
			"the server has no way to " + echo.String() + "; check its network",
			"reply: no reply to 2 datagrams: the server has no way to " + echo.String() + ", as it told CONNECT; check its network and the target.", 2,
		},
		{
			"target silent", &fakeSocks{refuse: socks.ReplyTTLExpired, dropUDP: true}, viaEcho,
			"did not answer the server in time", "did not answer the server's CONNECT either", 2,
		},
		{
			"CONNECT fails for another reason", &fakeSocks{refuse: socks.ReplyGeneralFailure, dropUDP: true}, viaEcho,
			"see the server's log for the cause", "no reply to 2 datagrams: CONNECT failed as well", 2,
		},
		{
			"BND refuses", &fakeSocks{closedUDP: true}, viaEcho,
			"", "reply: BND.ADDR unreachable: nothing takes datagrams at 127.0.0.1:", 0,
		},
		{
			"wrong socket", &fakeSocks{stranger: true}, viaEcho,
			"", "reply: wrong source: 2 datagrams came from 127.0.0.1:", 2,
		},
		{
			"wrong source in the header", &fakeSocks{source: lie}, viaEcho,
			"", "reply: wrong source: the header says that it comes from 192.0.2.9:", 1,
		},
		{
			"fragments", &fakeSocks{frag: 1}, viaEcho,
			"", "reply: malformed or fragmented reply: 2 datagrams", 2,
		},
		{
			"changed", &fakeSocks{spoil: func(_ int, b []byte) []byte { return b[:len(b)-1] }}, viaEcho,
			"", "reply: the reply differs from what was sent: 63 bytes came back for 64", 1,
		},
		{
			"association ended", &fakeSocks{endUDP: true}, viaEcho,
			"", "reply: the server ended the association by closing its TCP connection", 1,
		},
		{
			"half-close closes all", &fakeSocks{cutStream: true, dropUDP: true}, with(viaEcho, func(c *Config) { c.Timeout = 5 * time.Second }),
			"echo: the stream was cut short: 0 of 4096 bytes came back; the server drops data that arrives after a half-close", "no reply", 2,
		},
		{
			"not the expected address", &fakeSocks{}, with(viaDNS, func(c *Config) { c.Expect = netip.MustParseAddr("192.0.2.3") }),
			"DNS answer: the answer is not the expected address: [192.0.2.1 192.0.2.2] instead of 192.0.2.3",
			"reply: the answer is not the expected address", 1,
		},
		{
			"no such name", &fakeSocks{}, with(viaDNS, func(c *Config) { c.Domain = "other.test" }),
			"DNS answer: the DNS server knows no A record of other.test. (NXDOMAIN)", "reply: the DNS server knows no A record", 1,
		},
		{
			"no A record", &fakeSocks{}, with(viaDNS, func(c *Config) { c.Domain = "big.test" }),
			"DNS answer: the DNS server knows no A record of big.test.", "reply: the DNS server knows no A record", 1,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.fake.start(t)
			if tt.cfg.Socks == "" {
				tt.cfg.Socks = tt.fake.addr()
			}
			tt.cfg.Attempts = 2
			tt.cfg.Interval = lossInterval
			var out strings.Builder
			if Check(t.Context(), tt.cfg, &out) {
				t.Error("Check returned true")
			}
			t.Log("\n" + out.String())
			hasVerdict(t, out.String(), "TCP", tt.tcp)
			hasVerdict(t, out.String(), "UDP", tt.udp)
			if got := tt.fake.received.Load(); got != tt.sent {
				t.Errorf("the server got %d datagrams, want %d", got, tt.sent)
			}
		})
	}
}

// hasVerdict fails the test unless got has one verdict on the protocol: OK, or a failure with
// this text.
func hasVerdict(t *testing.T, got, protocol, failure string) {
	t.Helper()
	var verdicts []string
	for line := range strings.Lines(got) {
		if strings.HasPrefix(line, protocol+": ") {
			verdicts = append(verdicts, line)
		}
	}
	if len(verdicts) != 1 {
		t.Fatalf("%d verdicts on %s in:\n%s", len(verdicts), protocol, got)
	}
	ok := verdicts[0] == protocol+": OK\n"
	if failure == "" && !ok || failure != "" && (ok || !strings.Contains(verdicts[0], failure)) {
		t.Errorf("verdict %q, want %q", verdicts[0], failure)
	}
}

func TestCheckEndsWithItsContext(t *testing.T) {
	echo := startEcho(t)
	fake := (&fakeSocks{dropUDP: true}).start(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := &cancelAt{text: "datagram 1 of 3", cancel: cancel}
	start := time.Now()
	if Check(ctx, Config{Socks: fake.addr(), Echo: echo.String(), Interval: time.Minute}, out) {
		t.Error("Check returned true")
	}
	hasVerdict(t, out.String(), "UDP", "reply: interrupted")
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

// cancelAt is a writer that calls cancel once text has been written.
type cancelAt struct {
	strings.Builder
	text   string
	cancel func()
}

func (c *cancelAt) Write(b []byte) (int, error) {
	n, err := c.Builder.Write(b)
	if strings.Contains(c.String(), c.text) {
		c.cancel()
	}
	return n, err
}

func TestInvalidConfigurationIsRefused(t *testing.T) {
	good := Config{Socks: "127.0.0.1:1080"}
	if err := good.Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, `"" is not HOST:PORT`},
		{Config{Socks: "127.0.0.1"}, "is not HOST:PORT"},
		{Config{Socks: "127.0.0.1:0"}, "no port from 1 to 65535"},
		{Config{Socks: "127.0.0.1:65536"}, "no port from 1 to 65535"},
		{Config{Socks: "a b:1"}, "is not a host name"},
		{Config{Socks: "127.0.0.1:1", DNS: "8.8.8.8"}, "is not HOST:PORT"},
		{Config{Socks: "127.0.0.1:1", Echo: ":7"}, "is not HOST:PORT"},
		{Config{Socks: "127.0.0.1:1", Username: strings.Repeat("x", 256)}, "at most 255 bytes"},
		{Config{Socks: "127.0.0.1:1", Domain: "a..b"}, "is not a domain name"},
	} {
		err := tt.cfg.Validate()
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %q", err, tt.want)
		}
		var out strings.Builder
		if Check(t.Context(), tt.cfg, &out) || !strings.HasPrefix(out.String(), "Cannot start: ") {
			t.Errorf("Check printed %q", out.String())
		}
	}
}

func TestUnreachableBNDIsExplained(t *testing.T) {
	for _, tt := range []struct{ relay, server, want string }{
		{"127.0.0.1", "127.0.0.1", ""},
		{"127.0.0.1", "198.51.100.1", "BND.ADDR 127.0.0.1 is loopback"},
		{"::1", "2001:db8::1", "BND.ADDR ::1 is loopback"},
		{"172.17.0.2", "198.51.100.1", "BND.ADDR 172.17.0.2 is private, and the server was reached at 198.51.100.1"},
		{"172.17.0.2", "127.0.0.1", ""},
		{"10.0.0.1", "192.168.1.1", ""},
		{"198.51.100.1", "10.0.0.1", ""},
	} {
		got := misled(netip.MustParseAddr(tt.relay), netip.MustParseAddr(tt.server))
		if got != tt.want && (tt.want == "" || !strings.HasPrefix(got, tt.want)) {
			t.Errorf("%s of %s: %q, want %q", tt.relay, tt.server, got, tt.want)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"8.8.8.8:53", "[::1]:53", "[fe80::1%eth0]:1", "name:65535", ":1", "a:0", "[]:1", "a b:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseTarget(s)
		if err != nil {
			return
		}
		if a.Port == 0 || !a.IP.IsValid() && (a.Name == "" || len(a.Name) > 255) {
			t.Errorf("%q became %+v", s, a)
		}
		if again, err := ParseTarget(a.String()); err != nil || again != a {
			t.Errorf("%q became %v, which becomes %v, %v", s, a, again, err)
		}
	})
}
