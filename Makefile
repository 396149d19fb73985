# Names for plain Go commands.

.PHONY: build test bench bench-compare bench-road

# Without cgo the file runs on every Linux of its architecture, but it has no
# glibc resolver and so no NSS modules (mDNS, LDAP, NIS).
build:
	CGO_ENABLED=0 go build -o wmproxy ./cmd/wmproxy

test:
	go test -v -shuffle=on -timeout 20m ./...

# The Go benchmarks beside the code; compare two runs with benchstat.
bench:
	go test -run '^$$' -bench . -benchmem ./...

# wmproxy beside other tunnels on this machine; writes docs/BENCHMARKS.md.
# ARGS="-quick", ARGS="-only 64,rate -systems direct,quic,ss"
bench-compare:
	go run ./tools/benchcompare $(ARGS)

# wmproxy beside other tunnels over long, narrow and lossy paths; writes docs/ROAD.md. It takes
# root, and more than an hour for each path. A minute:
# ARGS="-paths P4 -loads half,down1 -systems direct,auto -cc bbr -rounds 1 -dur 3s -out /tmp/ROAD.md"
bench-road:
	go run ./tools/benchroad $(ARGS)
