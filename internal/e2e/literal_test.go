package e2e

import (
	"errors"
	"testing"

	"wmproxy/socks"
)

// Applications that take a host from a URL send literals as names.
func TestLiteralSentAsNameIsAnAddress(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overBoth, overProxy}, func(t *testing.T, kind string) {
		entry := startOver(t, kind, nil, nil).Entry.Socks()
		v4 := startEcho(t)
		v6 := startEchoAt(t, "[::1]:0")
		conn := associate(t, entry)
		for literal, echo := range map[string]socks.Addr{
			"[::1]": v6, "::1": v6, "127.0.0.1.": v4, "127.0.0.1": v4, "[::ffff:127.0.0.1]": v4,
		} {
			dst := socks.Addr{Name: literal, Port: echo.Port}
			if err := connectOnce(t.Context(), entry, dst, func() {}); err != nil {
				t.Errorf("CONNECT to %s: %v", literal, err)
			}
			writeTo(t, conn, []byte(literal), dst)
			if got, from := read(t, conn); string(got) != literal || from != echo {
				t.Errorf("UDP to %s: %q from %v, want it from %v", literal, got, from, echo)
			}
		}
		for literal, want := range map[string]byte{
			"[::ffff:10.255.255.1]": socks.ReplyNotAllowed,
			"10.255.255.1.":         socks.ReplyNotAllowed,
			"[fe80::1]":             socks.ReplyNotAllowed,
			"[fe80::1%lo]":          socks.ReplyGeneralFailure,
			"fe80::1%lo":            socks.ReplyGeneralFailure,
		} {
			_, err := entry.Connect(t.Context(), socks.Addr{Name: literal, Port: 9})
			var reply *socks.ReplyError
			if !errors.As(err, &reply) || reply.Code != want {
				t.Errorf("CONNECT to %s: %v, want reply %d", literal, err, want)
			}
		}
	})
}
