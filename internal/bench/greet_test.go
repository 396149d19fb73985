package bench

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
)

func TestOtherFarEndsAreRecognized(t *testing.T) {
	for _, test := range []struct {
		name, why string
		serve     func(net.Conn)
	}{
		{"an echo", "it echoes", func(c net.Conn) { _, _ = io.Copy(c, c) }},
		{"a web server", "it answers with something else", func(c net.Conn) {
			_, _ = io.ReadFull(c, make([]byte, prefaceLen))
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		}},
		{"one that hangs up", "it closes the connection", func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }},
		{"one that only reads", "it does not answer within 10s", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				defer near.Close()
				go func() { test.serve(far); far.Close() }()
				err := greet(near, modeUp)
				var other *notEchoError
				if !errors.As(err, &other) || other.why != test.why {
					t.Errorf("got %v, want %s", err, test.why)
				}
			})
		})
	}
}
