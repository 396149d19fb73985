package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"wmproxy/socks"
)

// describe makes a sentence of why an association or a stream could not be had,
// with what to do.
func describe(way *Way, err error) error {
	var step *socks.StepError
	var other *notEchoError
	var network net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("this process has no descriptors left (%w); ask for fewer or raise the limit with ulimit -n", err)
	case errors.As(err, &step):
		return fmt.Errorf("cannot use the SOCKS5 server %s: %w; \"wmproxy test --socks %s\" says more", way.Socks, err, way.Socks)
	case errors.As(err, &other):
		return fmt.Errorf("what answers at %s is not \"wmproxy bench echo\" of this version: %w; run that there", way.Target, other)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens at %s; run \"wmproxy bench echo\" there, or name where it runs with --target", way.Target)
	case errors.As(err, &network) && network.Timeout():
		return fmt.Errorf("no answer from %s; check --target, and that firewalls let this TCP port pass", way.Target)
	case errors.As(err, &network):
		return fmt.Errorf("cannot connect to %s (%w); check --target", way.Target, err)
	}
	return err
}
