//go:build linux

package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Host is a network namespace. The system knows no name for it, so that it ends with the
// last socket and process in it, and a killed test leaves nothing behind.
type Host struct {
	Name string

	t  TB
	ns netns.NsHandle
	nl *netlink.Handle
}

func newHost(t TB, name string) *Host {
	t.Helper()
	h := &Host{Name: name, t: t}
	err := apart(func() (err error) {
		h.ns, err = netns.New()
		return err
	})
	if err != nil {
		t.Fatalf("a namespace for %s: %v", name, err)
	}
	t.Cleanup(func() { h.ns.Close() })
	if h.nl, err = netlink.NewHandleAt(h.ns); err != nil {
		t.Fatalf("netlink of %s: %v", name, err)
	}
	t.Cleanup(h.nl.Close)
	h.setUp("lo")
	return h
}

// apart runs f on a thread of its own, which f may move to another namespace.
func apart(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		return err
	}
	defer before.Close()
	defer func() {
		if err := netns.Set(before); err != nil {
			panic("cannot move a thread back to its namespace: " + err.Error())
		}
	}()
	return f()
}

// In runs f on the host: sockets that f opens and processes that it starts belong to the
// host, unless f does that in other goroutines.
func (h *Host) In(f func() error) error {
	return apart(func() error {
		if err := netns.Set(h.ns); err != nil {
			return fmt.Errorf("entering %s: %w", h.Name, err)
		}
		return f()
	})
}

// Run runs a program on the host with this standard input and returns its output. It fails
// the test if the program fails.
func (h *Host) Run(input, program string, args ...string) string {
	h.t.Helper()
	path, err := find(program)
	if err != nil {
		h.t.Fatal(err)
	}
	var out []byte
	err = h.In(func() (err error) {
		cmd := exec.Command(path, args...)
		cmd.Stdin = strings.NewReader(input)
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		h.t.Fatalf("%s on %s: %v: %s\n%s", program, h.Name, err, out, input)
	}
	return string(out)
}

// find returns the path of a program, which may be in /usr/sbin, which is not on the PATH of
// ordinary users.
func find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	path := filepath.Join("/usr/sbin", program)
	_, err := os.Stat(path)
	return path, err
}

// Set sets a setting of the host below /proc/sys/net.
func (h *Host) Set(setting, value string) {
	h.t.Helper()
	err := h.In(func() error { return os.WriteFile(filepath.Join("/proc/sys/net", setting), []byte(value), 0) })
	if err != nil {
		h.t.Fatalf("setting %s on %s: %v", setting, h.Name, err)
	}
}

func (h *Host) link(name string) netlink.Link {
	h.t.Helper()
	l, err := h.nl.LinkByName(name)
	if err != nil {
		h.t.Fatalf("%s of %s: %v", name, h.Name, err)
	}
	return l
}

func (h *Host) setUp(name string) {
	h.t.Helper()
	if err := h.nl.LinkSetUp(h.link(name)); err != nil {
		h.t.Fatalf("setting up %s of %s: %v", name, h.Name, err)
	}
}

// address adds an address to a link of the host and sets the link up.
func (h *Host) address(name, cidr string) {
	h.t.Helper()
	addr, err := netlink.ParseAddr(cidr)
	if err == nil {
		err = h.nl.AddrAdd(h.link(name), addr)
	}
	if err != nil {
		h.t.Fatalf("%s for %s of %s: %v", cidr, name, h.Name, err)
	}
	h.setUp(name)
}

// defaultVia sets the default route.
func (h *Host) defaultVia(gateway string) {
	h.t.Helper()
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	if err := h.nl.RouteReplace(&netlink.Route{Dst: all, Gw: net.ParseIP(gateway)}); err != nil {
		h.t.Fatalf("a route through %s on %s: %v", gateway, h.Name, err)
	}
}

// SetCongestion sets the congestion control of the host's TCP connections to come.
func (h *Host) SetCongestion(name string) {
	h.t.Helper()
	// Only those that everybody may use can be the default of a namespace.
	allowed, err := os.ReadFile(allowedCongestion)
	if err == nil && !slices.Contains(strings.Fields(string(allowed)), name) {
		err = os.WriteFile(allowedCongestion, append(bytes.TrimSpace(allowed), " "+name...), 0)
		defer func() { _ = os.WriteFile(allowedCongestion, allowed, 0) }()
	}
	if err != nil {
		h.t.Fatalf("allowing %s: %v", name, err)
	}
	h.Set("ipv4/tcp_congestion_control", name)
}

const allowedCongestion = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"

// Missing returns an error if this machine cannot have a lab.
func Missing() error {
	if os.Geteuid() != 0 {
		return errors.New("only root can make network namespaces")
	}
	for program, pkg := range map[string]string{"nft": "nftables", "tc": "iproute2"} {
		if _, err := find(program); err != nil {
			return fmt.Errorf("%s is not installed (Debian package %s)", program, pkg)
		}
	}
	err := apart(func() error {
		ns, err := netns.New()
		if err != nil {
			return fmt.Errorf("this system makes no network namespaces: %w", err)
		}
		defer ns.Close()
		tun, err := openTUN("probe")
		if err != nil {
			return fmt.Errorf("this system has no TUN devices: %w", err)
		}
		return tun.Close()
	})
	return err
}
