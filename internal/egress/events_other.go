//go:build !linux

package egress

import "errors"

// addrEvents is for Linux only. Other systems read the addresses again.
type addrEvents struct{}

func openAddrEvents() (*addrEvents, error) { return nil, errors.ErrUnsupported }

func (*addrEvents) wait() error { return errors.ErrUnsupported }
func (*addrEvents) take() bool  { return false }
func (*addrEvents) close()      {}
