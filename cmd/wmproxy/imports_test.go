package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mayImport is the house of docs/ARCHITECTURE.md: which of our packages each may
// import. What is not here, a new package or a new import, is a change of the house:
// make it there first.
var mayImport = map[string][]string{
	"tunnel/tcp":      {"internal/notify", "internal/udpio", "tunnel/carrier"},
	"tunnel/quic":     {"tunnel/carrier"},
	"tunnel/pipe":     {"internal/notify", "tunnel/carrier"},
	"internal/netsim": {"internal/notify", "tunnel/carrier", "tunnel/pipe"},
	"internal/transports": {
		"tunnel/tcp",
		"tunnel/quic",
		"tunnel/carrier",
		"internal/udpio",
	},
	"tunnel/carrier/carriertest": {
		"tunnel/carrier",
	},
	"tunnel/wire": { // for the largest UDP payload
		"internal/udpio",
	},
	"tunnel/queue": {
		"tunnel/wire",
		"internal/udpio",
		"internal/stats",
		"internal/notify",
	},
	"tunnel/health": {
		"tunnel/wire",
		"tunnel/carrier",
	},
	"tunnel/carrier":    {},
	"internal/testmain": {},
	"tunnel/direct":     {},
	"cmd/wmproxy": {
		"client",
		"internal/bench",
		"internal/config",
		"internal/demo",
		"internal/link",
		"internal/loglimit",
		"internal/probe",
		"internal/standalone",
		"internal/state",
		"internal/status",
		"internal/tune",
		"internal/udpio",
		"server",
		"socks",
	},
	"client": {
		"internal/transports",
		"tunnel/health",
		"tunnel/carrier",
		"certs",
		"internal/config",
		"internal/eyeballs",
		"internal/ingress",
		"internal/link",
		"internal/notify",
		"internal/share",
		"internal/state",
		"internal/stats",
		"internal/status",
		"internal/udpio",
		"internal/user",
		"socks",
		"tunnel",
	},
	"server": {
		"internal/transports",
		"tunnel/health",
		"tunnel/carrier",
		"certs",
		"internal/admit",
		"internal/config",
		"internal/egress",
		"internal/link",
		"internal/notify",
		"internal/share",
		"internal/state",
		"internal/stats",
		"internal/status",
		"internal/udpio",
		"internal/user",
		"tunnel",
	},
	"internal/standalone": {
		"tunnel/pipe",
		"tunnel/carrier",
		"internal/config",
		"internal/egress",
		"internal/ingress",
		"internal/share",
		"internal/state",
		"internal/stats",
		"internal/status",
		"internal/udpio",
		"internal/user",
		"socks",
		"tunnel",
	},
	"internal/entrance": {
		"internal/admit",
		"internal/stats",
		"internal/udpio",
		"internal/user",
	},
	"internal/httpproxy": {
		"internal/entrance",
		"internal/user",
	},
	"internal/ingress": {
		"tunnel/wire",
		"tunnel/carrier",
		"internal/config",
		"internal/entrance",
		"internal/httpproxy",
		"internal/relay",
		"internal/share",
		"internal/stats",
		"internal/status",
		"internal/udpio",
		"internal/user",
		"socks",
		"tunnel",
	},
	"internal/egress": {
		"tunnel/wire",
		"tunnel/carrier",
		"internal/config",
		"internal/eyeballs",
		"internal/relay",
		"internal/share",
		"internal/stats",
		"internal/status",
		"internal/udpio",
		"internal/user",
		"socks",
		"tunnel",
	},
	"internal/relay": {
		"tunnel/carrier",
		"internal/udpio",
	},
	"internal/status": { // for the structs of a snapshot
		"internal/stats",
		"internal/user",
		"tunnel",
	},
	"internal/user": {
		"internal/stats",
	},
	"internal/stats":  {},
	"internal/notify": {},
	"socks": {
		"internal/entrance",
		"internal/stats",
		"internal/udpio",
		"internal/user",
	},
	"tunnel": {
		"tunnel/wire",
		"tunnel/queue",
		"tunnel/health",
		"tunnel/carrier",
		"internal/notify",
		"internal/stats",
		"internal/udpio",
		"internal/user",
	},
	"certs": {
		"internal/notify",
	},
	"internal/udpio": {
		"internal/tune",
	},
	"internal/tune":     {},
	"internal/loglimit": {},
	"internal/eyeballs": {},
	"internal/config": {
		"internal/link",
	},
	"internal/link": {
		"certs",
	},
	"internal/state": {},
	"internal/admit": {},
	"internal/share": {},
	"internal/probe": {
		"internal/udpio",
		"socks",
	},
	"internal/bench": {
		"internal/udpio",
		"socks",
	},
	"tools/floor": {
		"internal/udpio",
	},
	"tools/benchcompare": {
		"certs",
		"internal/bench",
		"internal/tune",
		"tools/floor",
		"tools/stage",
	},
	"tools/benchroad": {
		"certs",
		"internal/bench",
		"internal/netlab",
		"socks",
		"tools/stage",
	},
	"tools/stage": {},
	"internal/demo": {
		"client",
		"internal/bench",
		"internal/config",
		"internal/link",
		"internal/probe",
		"internal/state",
		"server",
		"socks",
	},
	"internal/e2e":    {}, // tests of processes, from outside
	"internal/netlab": {},
}

// foreign is who alone may import the packages that everything stands on. A
// second package that does has begun to know what it should not.
var foreign = map[string][]string{
	"github.com/quic-go/quic-go":              {"tunnel", "tunnel/quic", "tunnel/tcp", "tunnel/wire", "internal/udpio", "tools/floor", "tools/benchroad"}, // tunnel, wire, tcp: quicvarint alone; udpio: its socket; floor: nothing else; benchroad: HTTP/3
	"github.com/hashicorp/yamux":              {"tunnel/tcp", "tools/floor"},
	"github.com/urfave/cli/v2":                {"cmd/wmproxy"},
	"github.com/lmittmann/tint":               {"cmd/wmproxy"},
	"github.com/miekg/dns":                    {"internal/probe"},
	"github.com/fsnotify/fsnotify":            {"certs"},
	"github.com/HdrHistogram/hdrhistogram-go": {"internal/bench"},
	"github.com/guptarohit/asciigraph":        {"internal/bench"},
	"github.com/pion/stun/v3":                 {},
	"github.com/google/go-cmp/cmp":            {},
	"go.uber.org/goleak":                      {"internal/testmain"},
	"github.com/rogpeppe/go-internal":         {},
	"github.com/vishvananda/netlink":          {"internal/netlab"},
	"github.com/vishvananda/netns":            {"internal/netlab"},
}

func TestImportsRunOneWay(t *testing.T) {
	for _, system := range []string{"linux", "windows", "darwin"} {
		t.Run(system, func(t *testing.T) {
			for _, p := range listPackages(t, system) {
				path := strings.TrimPrefix(p.ImportPath, module)
				allowed, known := mayImport[path]
				if !known {
					t.Errorf("%s is a package that the house does not have", path)
					continue
				}
				for _, imported := range p.Imports {
					if ours, ok := strings.CutPrefix(imported, module); ok {
						if !slices.Contains(allowed, ours) {
							t.Errorf("%s must not import %s", path, ours)
						}
						continue
					}
					for of, importers := range foreign {
						if (imported == of || strings.HasPrefix(imported, of+"/")) && !slices.Contains(importers, path) {
							t.Errorf("%s must not import %s", path, imported)
						}
					}
				}
			}
		})
	}
}

// What the table allows has no circle and nothing that points up: each package
// reaches only such as do not reach it.
func TestTheHouseHasNoCircle(t *testing.T) {
	var reach func(from string, seen map[string]bool)
	reach = func(from string, seen map[string]bool) {
		for _, to := range mayImport[from] {
			if !seen[to] {
				seen[to] = true
				reach(to, seen)
			}
		}
	}
	below := map[string]map[string]bool{}
	for p := range mayImport {
		below[p] = map[string]bool{}
		reach(p, below[p])
		if below[p][p] {
			t.Errorf("%s reaches itself", p)
		}
	}
	// The sentences of docs/ARCHITECTURE.md.
	for p, never := range map[string][]string{
		"client":            {"internal/egress", "server"},
		"server":            {"internal/ingress", "client"},
		"internal/entrance": {"socks", "tunnel", "internal/ingress"},
		"internal/ingress":  {"internal/egress", "client", "server"},
		"internal/egress":   {"internal/ingress", "client", "server"},
		"tunnel":            {"socks", "certs", "internal/relay", "internal/ingress", "internal/egress"},
		"socks":             {"tunnel", "certs", "internal/relay"},
		"certs":             {"tunnel", "socks", "internal/udpio"},
		"internal/udpio":    {"tunnel", "socks", "certs"},
		"internal/status":   {"socks", "certs", "internal/ingress", "internal/egress", "client", "server"},
		"internal/probe":    {"tunnel", "client", "server", "internal/ingress", "internal/egress"},
	} {
		for _, other := range never {
			if below[p][other] {
				t.Errorf("%s reaches %s", p, other)
			}
		}
	}
}

const module = "wmproxy/"

type listed struct {
	ImportPath string
	Imports    []string // of the package, not of its tests

	TestImports, XTestImports []string // of its tests, in the package and beside it
}

func TestBubblesHaveOneProcessorUnderRace(t *testing.T) {
	for _, p := range listPackages(t, "linux") {
		tests := slices.Concat(p.TestImports, p.XTestImports)
		if slices.Contains(tests, "testing/synctest") && !slices.Contains(tests, module+"internal/testmain") {
			t.Errorf("the tests of %s use testing/synctest without testmain.Run", p.ImportPath)
		}
	}
}

// listPackages asks the Go tool for our packages as one system builds them.
func listPackages(t *testing.T, system string) (packages []listed) {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"...")
	cmd.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) < 10 {
		t.Fatalf("go list knows %d packages", len(packages))
	}
	return packages
}
