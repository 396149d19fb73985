package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"wmproxy/internal/config"
)

// readPassword replaces the name of a password's file with the password in it. If both
// are given, Validate refuses them.
func (p *program) readPassword(e *config.Entrance) error {
	if e.PassFile == "" || e.Pass != "" {
		return nil
	}
	data, err := p.readSmall("pass-file", e.PassFile)
	if err != nil {
		return err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	line = strings.TrimSuffix(line, "\r")
	if line == "" {
		return fmt.Errorf("the first line of %s is empty; put the password there", e.PassFile)
	}
	e.Pass, e.PassFile = config.Secret(line), ""
	return nil
}

// checkExposure returns an error if an entrance listens beyond loopback with neither a
// password nor --open. A name counts as the addresses that it resolves to. flag is that
// of the address.
func (p *program) checkExposure(ctx context.Context, e config.Entrance, flag string) error {
	if e.Open || e.User != "" {
		return nil
	}
	host, _, err := net.SplitHostPort(e.Listen)
	if err != nil {
		return err
	}
	refused := usageErrorf("%s listens beyond loopback for everyone; give --user and --pass, or --open if that is meant", p.origin(flag))
	if host == "" {
		return refused
	}
	addrs := []netip.Addr{}
	if addr, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, addr)
	} else if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return errors.New(listenAdvice(err, p.origin(flag)))
	}
	for _, addr := range addrs {
		if !addr.Unmap().IsLoopback() {
			return refused
		}
	}
	return nil
}
