//go:build !linux

package egress

import "errors"

// addrEvents is Linux's: elsewhere the addresses are read again instead.
type addrEvents struct{}

func openAddrEvents() (*addrEvents, error) { return nil, errors.ErrUnsupported }

func (*addrEvents) wait() error { return errors.ErrUnsupported }
func (*addrEvents) take() bool  { return false }
func (*addrEvents) close()      {}
