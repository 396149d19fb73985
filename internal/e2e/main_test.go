package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"go.uber.org/goleak"

	"wmproxy/internal/testmain"
)

// program is the path of the program under test, built once, with the race detector if the
// tests have it.
var program string

// programVariable has the path of the program in processes that tests start of this binary.
const programVariable = "WMPROXY_E2E_PROGRAM"

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if runtime.GOOS == "windows" {
		fmt.Println("nothing is tried here: the tests end processes by signals, which Windows does not have")
		return 0
	}
	// Most tests wait more than they work, so that two cores can run more than two. The
	// command line overrides it.
	_ = flag.Set("test.parallel", "4")
	// quic-go would warn that an association is not a *net.UDPConn.
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	if program = os.Getenv(programVariable); program != "" {
		return m.Run() // a process of one of the tests, which has built the program
	}
	dir, err := os.MkdirTemp("", "wmproxy-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "wmproxy")
	args := []string{"build", "-o", program}
	if testmain.Race {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "wmproxy/cmd/wmproxy")...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building wmproxy: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	// QUIC connections that the tests' own listeners refused stay for some seconds
	// (RFC 9000 section 10.2), and Find waits for only one.
	err = goleak.Find()
	for range 10 {
		if err == nil {
			break
		}
		err = goleak.Find()
	}
	if code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// unable skips a test that cannot run on this machine, or fails it if WMPROXY_TEST_NO_SKIP is
// set, as by .ci/run.
func unable(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("WMPROXY_TEST_NO_SKIP") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// debian returns the path of a program, or skips the test.
func debian(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		// Debian's daemons are not on the PATH of ordinary users.
		path = filepath.Join("/usr/sbin", name)
		if _, err := os.Stat(path); err != nil {
			unable(t, name+" is not installed (Debian package "+pkg+")")
		}
	}
	return path
}
