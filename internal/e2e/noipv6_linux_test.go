package e2e

import (
	"fmt"
	"math/bits"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"wmproxy/internal/probe"
	"wmproxy/socks"
)

// withoutIPv6Variable, if set, makes a test binary the process that becomes wmproxy without IPv6.
const withoutIPv6Variable = "WMPROXY_E2E_WITHOUT_IPV6"

// launchWithoutIPv6 starts wmproxy as if the kernel was booted with ipv6.disable=1.
func launchWithoutIPv6(t *testing.T, args ...string) *process {
	t.Helper()
	if bits.UintSize != 64 || runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		unable(t, "the filter of system calls is for amd64 and arm64")
	}
	cmd := exec.Command(os.Args[0], append([]string{"-test.run=^TestBecomesWMProxyWithoutIPv6$", "--"}, args...)...)
	return launchCommand(t, []string{withoutIPv6Variable + "=1", programVariable + "=" + program}, cmd, args)
}

// TestBecomesWMProxyWithoutIPv6 is the process that launchWithoutIPv6 starts, and not a test.
func TestBecomesWMProxyWithoutIPv6(t *testing.T) {
	if os.Getenv(withoutIPv6Variable) == "" {
		return
	}
	runtime.LockOSThread() // the filter belongs to the thread and survives exec
	if err := refuseIPv6(); err != nil {
		t.Fatal(err)
	}
	for i, arg := range os.Args {
		if arg == "--" {
			t.Fatal(syscall.Exec(program, append([]string{program}, os.Args[i+1:]...), os.Environ()))
		}
	}
}

// refuseIPv6 keeps the calling thread and its children from opening IPv6 sockets.
func refuseIPv6() error {
	const (
		syscallNumber = 0  // the offset in seccomp_data
		firstArgument = 16 // of its lower half
	)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: syscallNumber},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: unix.SYS_SOCKET},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: firstArgument},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.AF_INET6},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	return nil
}

// carriesAll checks that datagrams and a stream reach an echo.
func carriesAll(t *testing.T, c *socks.Client, echo socks.Addr) {
	t.Helper()
	conn := associate(t, c)
	ping(t, conn, echo)
	if _, err := probe.NewPinger(conn, echo).Ping(8000, waitTimeout); err != nil {
		t.Error(err)
	}
	connect(t, c, echo).Close()
}

func TestServerListensOnIPv4WithoutIPv6(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"", "[::]"} {
		t.Run("host "+host, func(t *testing.T) {
			t.Parallel()
			port := freePorts(t, 1)
			s := serverBehind(t, launchWithoutIPv6(t, append([]string{
				"server", "--listen", fmt.Sprintf("%s:%d", host, port), "--advertise", "127.0.0.1",
				"--state-dir", filepath.Join(t.TempDir(), "server"),
			}, loopbackAllowed...)...))
			s.WaitLog("IPv4 alone", containing("this machine has no IPv6"))
			c := launchWithoutIPv6(t, "client", "--listen", host+":0", "--open", "--udp", "127.0.0.1", "--state-dir", filepath.Join(t.TempDir(), "client"), s.Link)
			c.WaitLog("IPv4 alone", containing("this machine has no IPv6"))
			entry := entranceOf(t, c)
			entry.waitUp()
			carriesAll(t, entry.Socks(), startEcho(t))
		})
	}
}

func TestProxyListensOnIPv4WithoutIPv6(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"", "[::]"} {
		t.Run("host "+host, func(t *testing.T) {
			t.Parallel()
			p := launchWithoutIPv6(t, append([]string{
				"proxy", "--bind", host + ":0", "--open", "--udp", "127.0.0.1", "--udp-port", fmt.Sprint(freePorts(t, 1)),
				"--state-dir", filepath.Join(t.TempDir(), "proxy"),
			}, loopbackAllowed...)...)
			p.WaitLog("IPv4 alone", containing("this machine has no IPv6"))
			carriesAll(t, entranceOf(t, p).Socks(), startEcho(t))
		})
	}
}

// entranceOf returns the SOCKS5 entrance of a process that listens on all addresses.
func entranceOf(t *testing.T, p *process) *socksProcess {
	t.Helper()
	line := p.WaitLog("listening", message("SOCKS5 is listening"))
	_, port, err := net.SplitHostPort(line.String("address"))
	if err != nil {
		t.Fatal(err)
	}
	return &socksProcess{process: p, Addr: address("127.0.0.1:" + port).AddrPort()}
}

func TestDemoPassesWithoutIPv6(t *testing.T) {
	t.Parallel()
	if code := launchWithoutIPv6(t, "demo", "--once").WaitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
