package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// nobody is the id of a user of the machine who does not know the password.
const nobody = 65534

// udpAs opens a UDP socket of another user of this machine.
func udpAs(t testing.TB, uid int, ip string) (c *net.UDPConn) {
	t.Helper()
	asRoot(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(uid); err != nil {
		t.Fatal(err)
	}
	defer unix.Setfsuid(0)
	return udpAt(t, ip)
}

func TestOtherUserCannotUseAnAssociation(t *testing.T) {
	asRoot(t)
	target := startMemo(t)
	for _, shared := range []bool{false, true} {
		for _, named := range []bool{false, true} {
			t.Run(fmt.Sprintf("shared=%v,named=%v", shared, named), func(t *testing.T) {
				args := protected()
				if shared {
					args = append(args, "--udp-port", fmt.Sprint(freePorts(t, 1)))
				}
				entry := startProxy(t, args...)
				owner, second := udpAt(t, "127.0.0.1"), udpAt(t, "127.0.0.1")
				intruder := udpAs(t, nobody, "127.0.0.1")
				dst := nowhere
				if named {
					dst = netip.AddrPortFrom(nowhere.Addr(), portOf(owner))
				}
				a := associateFrom(t, entry.Addr.String(), "", dst, true)
				first, again := fmt.Sprint("intruder first ", t.Name()), fmt.Sprint("intruder again ", t.Name())
				a.sends(intruder, target.addr, first)
				if !a.served(owner, target.addr) || !a.served(second, target.addr) {
					t.Fatal("the owner is not served")
				}
				a.sends(intruder, target.addr, again)
				if !a.served(owner, target.addr) || !a.served(second, target.addr) {
					t.Error("the owner is not served any more")
				}
				if target.heard(first) || target.heard(again) {
					t.Errorf("another user's datagrams went out: first %v, again %v", target.heard(first), target.heard(again))
				}
				if !shared {
					entry.WaitLog("the reason", containing("not of the user of this machine"))
				}
			})
		}
	}
}

// asRoot skips a test of several users unless it runs as root.
func asRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		unable(t, "it takes root to act as several users")
	}
}
