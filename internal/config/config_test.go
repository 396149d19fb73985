package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wmproxy/internal/link"
	"wmproxy/internal/testmain"
)

func TestMain(m *testing.M) { testmain.Run(m) }

var testLink = link.Link{Name: "alice", Secret: "hunter2", Host: "h", Port: 1}

func TestDefaultsAreValid(t *testing.T) {
	client, server, proxy := DefaultClient(), DefaultServer(), DefaultProxy()
	client.Links = []link.Link{testLink}
	for _, tree := range []interface{ Validate() error }{&client, &server, &proxy} {
		if err := tree.Validate(); err != nil {
			t.Errorf("%T: %v", tree, err)
		}
	}
}

func TestValidateNamesTheField(t *testing.T) {
	for _, test := range []struct {
		want  string // paths
		wrong func(*Client, *Server)
	}{
		{"links", func(c *Client, _ *Server) { c.Links = nil }},
		{"links", func(c *Client, _ *Server) { c.Links = make([]link.Link, link.MaxLinks+1) }},
		{"pick", func(c *Client, _ *Server) { c.Pick = "best" }},
		{"transport", func(c *Client, _ *Server) { c.Transport = "tcp" }},
		{"streams", func(c *Client, _ *Server) { c.Streams = "tcp" }},
		{"streams and transport", func(c *Client, _ *Server) { c.Streams, c.Transport = QUIC, Yamux }},
		{"timers.suspect", func(c *Client, _ *Server) { c.Timers.Suspect = 0 }},
		{"timers.suspect_idle", func(c *Client, _ *Server) { c.Timers.SuspectIdle = c.Timers.Suspect - 1 }},
		{"timers.dead", func(c *Client, _ *Server) { c.Timers.Dead = time.Hour }},
		{"timers.steady", func(c *Client, _ *Server) { c.Timers.Steady = time.Hour }},
		{"entrance.listen", func(c *Client, _ *Server) { c.Entrance.Listen = "1080" }},
		{"entrance.user and entrance.pass", func(c *Client, _ *Server) { c.Entrance.User = "u" }},
		{"entrance.pass and entrance.pass_file", func(c *Client, _ *Server) { c.Entrance.Pass, c.Entrance.PassFile = "p", "f" }},
		{"entrance.pass", func(c *Client, _ *Server) {
			c.Entrance.User, c.Entrance.Pass = "u", Secret(strings.Repeat("x", MaxCredential+1))
		}},
		{"entrance.udp_advertise", func(c *Client, _ *Server) { c.Entrance.UDPAdvertise = netip.MustParseAddr("224.0.0.1") }},
		{"entrance.udp_answers", func(c *Client, _ *Server) { c.Entrance.UDPAnswers = "" }},
		{"memory", func(c *Client, _ *Server) { c.Memory = minMemory - 1 }},
		{"debug", func(c *Client, _ *Server) { c.Debug = netip.MustParseAddrPort("192.0.2.1:1") }},
		{"log.format", func(c *Client, _ *Server) { c.Log.Format = "xml" }},
		{"log.level", func(c *Client, _ *Server) { c.Log.Level = "loud" }},
		{"listen", func(_ *Client, s *Server) { s.Listen = "h:70000" }},
		{"transports", func(_ *Client, s *Server) { s.Transports = nil }},
		{"transports", func(_ *Client, s *Server) { s.Transports = []string{QUIC, "tcp"} }},
		{"advertise", func(_ *Client, s *Server) { s.Advertise = "two words" }},
		{"advertise", func(_ *Client, s *Server) { s.Advertise = ":443" }},
		{"users", func(_ *Client, s *Server) { s.Users = []User{{"a", "x"}, {"a", "y"}} }},
		{"users", func(_ *Client, s *Server) { s.Users = []User{{"a:b", "x"}} }},
		{"users", func(_ *Client, s *Server) { s.Users = []User{{"a", ""}} }},
		{"users", func(_ *Client, s *Server) { s.Users = make([]User, link.MaxTokens+1) }},
		{"cert and key", func(_ *Client, s *Server) { s.Cert = "c" }},
		{"hold", func(_ *Client, s *Server) { s.Hold = -1 }},
		{"drain", func(_ *Client, s *Server) { s.Drain = 2 * time.Hour }},
		{"dead", func(_ *Client, s *Server) { s.Dead = 0 }},
		{"exit.udp_idle", func(_ *Client, s *Server) { s.Exit.UDPIdle = 0 }},
	} {
		c, s := DefaultClient(), DefaultServer()
		c.Links = []link.Link{testLink}
		test.wrong(&c, &s)
		err := errors.Join(c.Validate(), s.Validate())
		var wrong *Error
		if !errors.As(err, &wrong) || strings.Join(wrong.Paths, " and ") != test.want {
			t.Errorf("got %v, want an error about %s", err, test.want)
		}
	}
}

func TestValidateCompletesAddresses(t *testing.T) {
	c, s, p := DefaultClient(), DefaultServer(), DefaultProxy()
	c.Links = []link.Link{testLink}
	c.Entrance.Listen, s.Listen, s.Advertise, p.Entrance.Listen = "::1", "h", "[2001:db8::1]", "0.0.0.0"
	if err := errors.Join(c.Validate(), s.Validate(), p.Validate()); err != nil {
		t.Fatal(err)
	}
	want := []string{"[::1]:1080", "h:8090", "2001:db8::1", "0.0.0.0:8090"}
	if diff := cmp.Diff(want, []string{c.Entrance.Listen, s.Listen, s.Advertise, p.Entrance.Listen}); diff != "" {
		t.Error(diff)
	}
}

func TestWrongTextLeavesTheFieldAsItWas(t *testing.T) {
	for path, texts := range map[string][]string{
		"entrance.udp_advertise": {"localhost", "fe80::1%lo", "300.1.1.1"},
		"entrance.udp_ports":     {"0", "65536", "-1", "1-", "-", "2-1", "0-5", "1-2-3", "a", " 1"},
		"entrance.udp_from":      {"10.0.0.0/33", "local", "8.8.8.8:53", ""},
		"entrance.open":          {"maybe", ""},
		"exit.udp_idle":          {"soon", "5"},
		"exit.filtering":         {"full-cone", ""},
		"memory":                 {"much", "-1", "0", "99999999TB"},
		"debug":                  {"localhost:6060", ":6060", "127.0.0.1", "127.0.0.1:70000", "[fe80::1%lo]:1"},
	} {
		for _, text := range texts {
			p := DefaultProxy()
			p.Memory, p.Entrance.UDPPorts = 7, PortRange{1, 2}
			want := p
			err := Fields(&p)[path].Set(text)
			var wrong *Error
			if !errors.As(err, &wrong) || wrong.Paths[0] != path {
				t.Errorf("%s %q: %v", path, text, err)
			}
			if diff := cmp.Diff(want, p, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})); diff != "" {
				t.Errorf("%s %q: %s", path, text, diff)
			}
		}
	}
}

func TestPortRangesFromText(t *testing.T) {
	for text, want := range map[string]PortRange{"": {}, "1": {1, 1}, "65535": {65535, 65535}, "20000-20999": {20000, 20999}, "7-7": {7, 7}} {
		p := DefaultProxy()
		if err := Fields(&p)["entrance.udp_ports"].Set(text); err != nil || p.Entrance.UDPPorts != want {
			t.Errorf("%q: got %v, %v", text, p.Entrance.UDPPorts, err)
		}
	}
}

func TestPrefixesAreMaskedAndUnmapped(t *testing.T) {
	p := DefaultProxy()
	if err := Fields(&p)["exit.allow"].Set("10.0.0.1/8", "::ffff:192.0.2.0/120", "fd00::1", "8.8.8.8"); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.Exit.Allow); got != "[10.0.0.0/8 192.0.2.0/24 fd00::1/128 8.8.8.8/32]" {
		t.Error(got)
	}
}

func TestPrintingATreeHidesSecrets(t *testing.T) {
	c, s := DefaultClient(), DefaultServer()
	c.Links, c.Entrance.Pass = []link.Link{testLink}, "hunter2"
	s.Users = []User{{Name: "alice", Token: "hunter2"}}
	out := fmt.Sprintf("%v %+v %#v %s %x %d %v", c, c, c, c.Entrance.Pass, c.Entrance.Pass, c.Entrance.Pass, &c) +
		fmt.Sprintf("%v %+v %#v %q", s, s, s, s.Users)
	for _, tree := range []any{c, s} {
		text, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		out += string(text)
	}
	if strings.Contains(out, "hunter2") || strings.Contains(out, fmt.Sprintf("%x", "hunter2")) {
		t.Errorf("got %s", out)
	}
	if err := Fields(&s)["users"].Set("hunter2"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}
