package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"wmproxy/socks"
)

// describe returns an error with the likely cause of err, an error of an association or
// a stream, and advice.
func describe(way *Way, err error) error {
	var step *socks.StepError
	var other *notEchoError
	var network net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("this process has no descriptors left (%w); ask for fewer or raise the limit with ulimit -n", err)
	case errors.As(err, &step) && step.Step == socks.StepDial:
		return fmt.Errorf("%s; check --socks", dialFailure(way.Socks, step.Err))
	case errors.As(err, &step):
		return fmt.Errorf("cannot use the SOCKS5 server %s: %w; \"wmproxy test --socks %s\" says more", way.Socks, err, way.Socks)
	case errors.As(err, &other):
		return fmt.Errorf("%s is not \"wmproxy bench echo\" of this version: %w; run that there", way.Target, other)
	case errors.As(err, &network):
		return fmt.Errorf("%s; check --target, and that \"wmproxy bench echo\" runs there", dialFailure(way.Target.String(), err))
	}
	return err
}

// dialFailure returns the cause of err, an error of dialing address, in words.
func dialFailure(address string, err error) string {
	var unknown *net.DNSError
	var network net.Error
	switch {
	case errors.As(err, &unknown):
		return fmt.Sprintf("the name in %s does not resolve (%s)", address, unknown.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens at " + address
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return "no answer from " + address
	}
	return fmt.Sprintf("cannot connect to %s (%v)", address, err)
}
