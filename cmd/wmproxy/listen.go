package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
)

// listenFailure turns an error of listening on the address of a flag into a sentence
// with advice. It returns other errors as they are.
func (p *program) listenFailure(err error, flag string) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "listen" {
		return err
	}
	where := "the address"
	if op.Addr != nil {
		where = strings.ToUpper(op.Net[:min(len(op.Net), 3)]) + " " + op.Addr.String()
	}
	return fmt.Errorf("cannot listen on %s: %s", where, listenAdvice(op.Err, p.origin(flag)))
}

// listenAdvice explains why nothing can listen on an address that option names.
func listenAdvice(err error, option string) string {
	var unknown *net.DNSError
	switch {
	case errors.As(err, &unknown):
		return fmt.Sprintf("the name %s does not resolve (%s); write an IP address in %s", unknown.Name, unknown.Err, option)
	case errors.Is(err, errAddrInUse):
		return "another program has that port; stop it, or give another port with " + option
	case errors.Is(err, errAccess), errors.Is(err, syscall.EPERM):
		return "this user may not have that port; give one above 1023 with " + option + ", or the user the right (CAP_NET_BIND_SERVICE)"
	case errors.Is(err, errAddrNotAvail):
		return "this machine does not have that address; give one of its own with " + option + ", or leave the address out for all of them"
	case errors.Is(err, errNoFamily):
		return "this machine has no IPv6, or no IPv4; give an address of the other family with " + option
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "there are no descriptors left; raise the limit with ulimit -n"
	}
	return fmt.Sprintf("%v; check %s", err, option)
}
