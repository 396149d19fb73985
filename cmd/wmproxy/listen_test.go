package main

import (
	"errors"
	"net"
	"os"
	"testing"
)

func TestListenFailureNamesTheFlag(t *testing.T) {
	at := &net.TCPAddr{Port: 80}
	for _, test := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errors.New("something else"), "something else"},
		{
			&net.OpError{Op: "listen", Net: "tcp", Addr: at, Err: os.NewSyscallError("bind", errAccess)},
			"cannot listen on TCP :80: this user may not have that port; give one above 1023 with --listen, or the user the right (CAP_NET_BIND_SERVICE)",
		},
		{
			&net.OpError{Op: "listen", Net: "tcp", Addr: at, Err: os.NewSyscallError("bind", errAddrInUse)},
			"cannot listen on TCP :80: another program has that port; stop it, or give another port with --listen",
		},
		{
			&net.OpError{Op: "listen", Net: "udp", Addr: at, Err: errors.New("strange")},
			"cannot listen on UDP :80: strange; check --listen",
		},
	} {
		p, _, _ := testProgram(nil)
		got := ""
		if err := p.listenFailure(test.err, "listen"); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
