# What is worth a name. All of it is plain Go commands.

.PHONY: build test bench bench-compare

build:
	go build -o wmproxy ./cmd/wmproxy

test:
	go test ./...

# The Go benchmarks beside the code; compare two runs with benchstat.
bench:
	go test -run '^$$' -bench . -benchmem ./...

# wmproxy beside other tunnels on this machine; writes docs/BENCHMARKS.md.
# ARGS="-quick", ARGS="-only 64,rate -systems direct,quic,ss"
bench-compare:
	go run ./internal/benchcompare $(ARGS)
