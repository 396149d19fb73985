package main

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wmproxy/internal/bench"
	"wmproxy/socks"
)

func TestBenchFlags(t *testing.T) {
	target := socks.Addr{IP: netip.MustParseAddr("192.0.2.1"), Port: 7}
	defaults := func(change func(*benchOptions)) benchOptions {
		o := benchOptions{
			load: "udp", common: bench.Common{Way: bench.Way{Target: target}, Duration: 3 * time.Second, Timeout: time.Second},
			assoc: 4, window: 32, size: 64, streams: 4, dir: "down", workers: 16, settle: 30 * time.Second,
		}
		change(&o)
		return o
	}
	for _, test := range []struct {
		args string
		want benchOptions
	}{
		{"udp --direct --target 192.0.2.1:7", defaults(func(*benchOptions) {})},
		{"udp --socks 127.0.0.1:1080 -u U -p P --target 192.0.2.1 --assoc 64 --window 4 --size 200 --dur 5s --timeout 2s --pids 1,2 --offload --json", defaults(func(o *benchOptions) {
			o.common = bench.Common{
				Way:      bench.Way{Socks: "127.0.0.1:1080", Username: "U", Password: "P", Target: socks.Addr{IP: target.IP, Port: 7007}},
				Duration: 5 * time.Second, Timeout: 2 * time.Second, PIDs: []int{1, 2}, Offload: true,
			}
			o.assoc, o.window, o.size, o.json = 64, 4, 200, true
		})},
		{"udp --direct --target 192.0.2.1:7 --rate 5000 --assoc 20", defaults(func(o *benchOptions) { o.rate, o.window, o.assoc = 5000, 0, 20 })},
		{"tcp --direct --target 192.0.2.1:7 --streams 2 --dir both", defaults(func(o *benchOptions) { o.load, o.streams, o.dir = "tcp", 2, "both" })},
		{"churn --direct --target 192.0.2.1:7 --workers 3", defaults(func(o *benchOptions) { o.load, o.workers = "churn", 3 })},
		{"hold --direct --target 192.0.2.1:7 --settle 0s", defaults(func(o *benchOptions) { o.load, o.assoc, o.settle = "hold", 1000, 0 })},
		{"echo --listen :9", benchOptions{load: "echo", listen: netip.MustParseAddrPort("[::]:9")}},
		{"echo", benchOptions{load: "echo", listen: netip.MustParseAddrPort("127.0.0.1:7007")}},
	} {
		t.Run(test.args, func(t *testing.T) {
			got, err := configOf(t, nil, (*program).benchOptions, append([]string{"bench"}, strings.Fields(test.args)...)...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(benchOptions{}), cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}), cmpopts.IgnoreUnexported(bench.Way{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWrongUsageOfBench(t *testing.T) {
	for _, line := range []string{
		"", "quic", "udp", "udp --target h:1", "udp --direct --socks h:1", "udp --direct --target h:0", "udp --socks h:1 -u U",
		"udp --direct --assoc 0", "udp --direct --assoc 1000000", "udp --direct --window 0", "udp --direct --rate 0", "udp --direct --rate -1",
		"udp --direct --window 1 --rate 1", "udp --direct --size 23", "udp --direct --size 65498", "udp --direct --dur 0s", "udp --direct --dur 25h",
		"udp --direct --timeout 2m", "udp --direct --pids x", "udp --direct --pids 1,-2", "udp --direct --streams 2", "tcp --direct --dir left",
		"tcp --direct --window 3", "tcp --direct --streams 0", "churn --direct --workers 0", "churn --direct --rate 5", "hold --direct --settle -1s",
		"echo --direct", "echo --listen name:7", "echo --listen 7",
	} {
		_, err := configOf(t, nil, (*program).benchOptions, append([]string{"bench"}, strings.Fields(line)...)...)
		if !errors.As(err, new(*usageError)) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func TestTheEnvironmentOfOneLoadDoesNotBreakAnother(t *testing.T) {
	env := map[string]string{"WMPROXY_BENCH_SOCKS": "127.0.0.1:1", "WMPROXY_BENCH_RATE": "50", "WMPROXY_BENCH_STREAMS": "2"}
	for _, load := range []string{"udp", "tcp", "churn", "hold", "echo"} {
		if _, err := configOf(t, env, (*program).benchOptions, "bench", load); err != nil {
			t.Errorf("%s: %v", load, err)
		}
	}
}

func TestBenchPrintsForPeopleAndForPrograms(t *testing.T) {
	echo, err := bench.ListenEcho(netip.MustParseAddrPort("127.0.0.1:0"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	args := strings.Fields("bench udp --direct --assoc 2 --window 2 --dur 100ms --target " + echo.Addr().String())
	p, stdout, stderr := testProgram(nil)
	if code := p.run(t.Context(), args); code != exitOK || stderr.Len() > 0 || !strings.Contains(stdout.String(), "round trips/s") {
		t.Errorf("exit code %d, standard output %s, standard error %q", code, stdout, stderr)
	}
	p, stdout, stderr = testProgram(nil)
	if code := p.run(t.Context(), append(args, "--json")); code != exitOK || stderr.Len() > 0 {
		t.Fatalf("exit code %d, standard error %q", code, stderr)
	}
	var r bench.UDPResult
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil || r.Load != "udp" || r.InTime == 0 || r.PerSecond == 0 {
		t.Errorf("got %+v and %v from %s", r, err, stdout)
	}
}

func TestBenchEndsWithAnErrorWhereNothingPasses(t *testing.T) {
	p, stdout, stderr := testProgram(nil)
	code := p.run(t.Context(), strings.Fields("bench udp --socks 127.0.0.1:1 --target 127.0.0.1:9"))
	if code != exitFailed || stdout.Len() > 0 || !strings.Contains(stderr.String(), "nothing listens at 127.0.0.1:1; check --socks") {
		t.Errorf("exit code %d, standard output %q, standard error %q", code, stdout, stderr)
	}
}
