package socks

import (
	"bytes"
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/entrance"
)

// request4To returns a SOCKS4 request; host is an address, or for 4a a name.
func request4To(command byte, host string) []byte {
	b := []byte{4, command, 0, 80}
	if ip, err := netip.ParseAddr(host); err == nil {
		return append(append(b, ip.AsSlice()...), "user\x00"...)
	}
	return append(append(b, 0, 0, 0, 7), "user\x00"+host+"\x00"...)
}

func TestSOCKS4ConnectsToAddressesAndNames(t *testing.T) {
	for host, want := range map[string]string{
		"192.0.2.1":   "192.0.2.1:80",
		"example.org": "example.org:80",
		"[::1]":       "[::1]:80", // as a name of 4a
		longName:      longName + ":80",
	} {
		t.Run(host[:min(len(host), 20)], func(t *testing.T) {
			var got entrance.Request
			s := &Server{Handler: handler{connect: func(_ context.Context, r *entrance.Request) {
				got = *r
				_ = r.Reply(entrance.OK, netip.MustParseAddrPort("192.0.2.9:4660"))
			}}}
			c := &script{remote: "192.0.2.7:4000", pieces: [][]byte{append(request4To(commandConnect, host), "ahead"...)}}
			serve(s, c)
			if got.Target.String() != want || string(got.Ahead) != "ahead" || got.Client.String() != "192.0.2.7:4000" {
				t.Errorf("%q asked for %v with %q ahead, want %s", got.Client, got.Target, got.Ahead, want)
			}
			if diff := cmp.Diff([]byte{0, 90, 0x12, 0x34, 192, 0, 2, 9}, c.sent); diff != "" {
				t.Errorf("reply (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSOCKS4RequestsAreRefused(t *testing.T) {
	open, logs := &Server{Handler: refusing}, &logBuffer{}
	closed := &Server{Handler: refusing, Users: oneUser("u", "p"), Log: logs.logger()}
	none := []byte(nil)
	for _, c := range []struct {
		name    string
		server  *Server
		request []byte
		want    []byte
	}{
		{"by the handler", open, request4To(commandConnect, "192.0.2.1"), []byte{0, 91, 0, 0, 0, 0, 0, 0}},
		{"BIND", open, request4To(commandBind, "192.0.2.1"), []byte{0, 91, 0, 0, 0, 0, 0, 0}},
		{"without the password", closed, request4To(commandConnect, "192.0.2.1"), []byte{0, 93, 0, 0, 0, 0, 0, 0}},
		{"again", closed, request4To(commandConnect, "example.org"), []byte{0, 93, 0, 0, 0, 0, 0, 0}},
		{"half", open, request4To(commandConnect, "example.org")[:16], none},
		{"an empty name", open, request4To(commandConnect, ""), none},
		{"a long user", open, append([]byte{4, 1, 0, 80, 1, 2, 3, 4}, bytes.Repeat([]byte{'u'}, 300)...), none},
		{"a long name", open, request4To(commandConnect, strings.Repeat("n", 256)), none},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := &script{remote: "192.0.2.7:4000", pieces: [][]byte{c.request}}
			serve(c.server, conn)
			if diff := cmp.Diff(c.want, conn.sent); diff != "" {
				t.Errorf("reply (-want +got):\n%s", diff)
			}
		})
	}
	if n := strings.Count(logs.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings, want 1:\n%s", n, logs.String())
	}
}
