package bench

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"wmproxy/socks"
)

// describe makes a sentence of why an association could not be had, with what to
// do.
func describe(way *Way, err error) error {
	var step *socks.StepError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("this process has no descriptors left (%w); ask for fewer or raise the limit with ulimit -n", err)
	case errors.As(err, &step):
		return fmt.Errorf("cannot use the SOCKS5 server %s: %w; \"wmproxy test --socks %s\" says more", way.Socks, err, way.Socks)
	}
	return err
}
