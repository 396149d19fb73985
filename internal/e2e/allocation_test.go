package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wmproxy/internal/testmain"
	"wmproxy/socks"
)

const (
	// profiled is the number of datagrams sent while allocations are counted.
	profiled = 100_000

	// fewAllocations bounds the allocations of a function of ours meanwhile: a garbage
	// collection empties each sync.Pool. One for each datagram or bundle would make
	// thousands.
	fewAllocations = 200
)

// site is a function that allocates.
type site struct {
	name  string
	count int64
	ours  bool
}

// allocations returns the allocations of a process that counts all of them, by site.
func allocations(t *testing.T, p *process) map[string]site {
	t.Helper()
	base := "http://" + p.WaitLog("debugging", message("debugging is listening")).String("address")
	client := &http.Client{Timeout: waitTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	// An allocation is in the profile after two garbage collections.
	for _, path := range []string{"/debug/runtime?gc=1", "/debug/pprof/heap?gc=1&debug=1"} {
		resp, err := client.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(path, "/debug/pprof") {
			return sites(t, string(b))
		}
	}
	return nil
}

// sites parses a profile in pprof's text form, in which a stack of allocations is
//
//	INUSE: BYTES [COUNT: BYTES] @ PC...
//	#	PC	FUNCTION+OFFSET	FILE:LINE
//
// without the runtime's own functions at its top.
func sites(t *testing.T, profile string) map[string]site {
	t.Helper()
	if !strings.HasPrefix(profile, "heap profile: ") || !strings.Contains(profile, "@ heap/2\n") {
		first, _, _ := strings.Cut(profile, "\n")
		t.Fatalf("no profile of every allocation: %q", first)
	}
	found := make(map[string]site)
	var count int64
	var stack []string
	add := func() {
		if len(stack) == 0 {
			return
		}
		s := place(stack)
		s.count = count + found[s.name].count
		found[s.name] = s
		stack = nil
	}
	lines := bufio.NewScanner(strings.NewReader(profile))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		var inuse, bytes int64
		switch fields := strings.Split(line, "\t"); {
		case len(fields) >= 4 && fields[0] == "#":
			name, _, _ := strings.Cut(fields[2], "+")
			stack = append(stack, name+" at "+filepath.Base(fields[len(fields)-1]))
		default:
			add()
			if _, err := fmt.Sscanf(line, "%d: %d [%d: %d] @", &inuse, &bytes, &count, &bytes); err != nil {
				count = 0
			}
		}
	}
	add()
	return found
}

// helpers are packages whose functions allocate on behalf of their callers.
var helpers = []string{"slices.", "maps.", "bytes.", "strings.", "strconv.", "fmt.", "errors.", "encoding/binary.", "github.com/quic-go/quic-go/quicvarint."}

// place returns the site of a stack, innermost function first: the function itself, or
// our function that called a helper.
func place(stack []string) site {
	for i, f := range stack {
		if strings.HasPrefix(f, "wmproxy/") {
			return site{name: f, ours: true}
		}
		if !slices.ContainsFunc(helpers, func(h string) bool { return strings.HasPrefix(f, h) }) {
			return site{name: stack[i]}
		}
	}
	return site{name: stack[0]}
}

// exchange sends n datagrams of changing sizes to an echo, window of them at a time,
// and returns the number that came back.
func exchange(t *testing.T, conn *socks.PacketConn, echo socks.Addr, n, window int) (back int) {
	t.Helper()
	sizes := []int{64, 160, 160, 700, 1200, 3000}
	to := net.UDPAddrFromAddrPort(echo.AddrPort())
	out, in := make([]byte, slices.Max(sizes)), make([]byte, slices.Max(sizes))
	for sent, missing := 0, 0; sent < n || missing > 0; {
		for ; missing < window && sent < n; missing++ {
			if _, err := conn.WriteTo(out[:sizes[sent%len(sizes)]], to); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		if err := conn.SetReadDeadline(time.Now().Add(retryAfter)); err != nil {
			t.Fatal(err)
		}
		switch _, _, err := conn.ReadFrom(in); {
		case err == nil:
			back++
			missing--
		case errors.Is(err, os.ErrDeadlineExceeded):
			missing = 0
		default:
			t.Fatal(err)
		}
	}
	return back
}

// Garbage of datagrams would cost CPU at every rate.
func TestDatagramsDoNotAllocate(t *testing.T) {
	if testmain.Race {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	t.Parallel()
	// Collections are rare, because each one empties the pools.
	counting := []string{"GODEBUG=memprofilerate=1", "GOGC=2000"}
	overEach(t, []string{overQUIC, overYamux}, func(t *testing.T, kind string) {
		dir := t.TempDir()
		s := serverBehind(t, launch(t, counting, slices.Concat(
			[]string{"server", "--listen", fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)), "--state-dir", filepath.Join(dir, "server")},
			loopbackAllowed, withDebug)...))
		p := launch(t, counting, slices.Concat(
			[]string{"client", "--transport", kind, "--listen", "127.0.0.1:0", "--state-dir", filepath.Join(dir, "client")},
			withDebug, []string{s.Link})...)
		p.WaitLog("the tunnel being up", containing("tunnel up: "))
		entry := &socks.Client{Server: p.WaitLog("listening", message("SOCKS5 is listening")).String("address"), Timeout: waitTimeout}
		conn, echo := associate(t, entry), startEcho(t)
		ping(t, conn, echo)
		if err := conn.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		exchange(t, conn, echo, profiled/10, 32) // until all buffers have their size

		processes := []*process{p, s.process}
		var before []map[string]site
		for _, p := range processes {
			before = append(before, allocations(t, p))
		}
		began := time.Now()
		back := exchange(t, conn, echo, profiled, 32)
		took := time.Since(began)
		if back < profiled*9/10 {
			t.Errorf("%d of %d datagrams came back", back, profiled)
		}
		for i, p := range processes {
			after := allocations(t, p)
			var ours, others int64
			var most []site
			for _, name := range slices.Sorted(maps.Keys(after)) {
				s := after[name]
				s.count -= before[i][name].count
				if !s.ours {
					if !strings.HasPrefix(name, "runtime/pprof.") { // makes the profile
						others += s.count
					}
					continue
				}
				ours += s.count
				if s.count > fewAllocations {
					t.Errorf("%s over %s: %d allocations in %s", p.name, kind, s.count, name)
				}
				most = append(most, s)
			}
			slices.SortFunc(most, func(a, b site) int { return int(b.count - a.count) })
			t.Logf("%s over %s: %d datagrams, %d back, in %v: %d allocations of ours, %.2f of others for one; most in %v",
				p.name, kind, profiled, back, took.Round(time.Millisecond), ours, float64(others)/profiled, most[:min(3, len(most))])
		}
	})
}
