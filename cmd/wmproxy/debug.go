package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"wmproxy/internal/tune"
)

// Bounds of the debugging server. Writing may take long: it includes the time
// that a profile is asked to cover.
const (
	debugReadTimeout    = 5 * time.Second
	debugWriteTimeout   = 2 * time.Minute
	debugIdleTimeout    = 10 * time.Second
	debugMaxHeader      = 16 << 10 // bytes
	debugShutdownBudget = 250 * time.Millisecond
)

// startDebug serves on addr until stop is called, which waits for the end. For
// the zero addr it does nothing.
func startDebug(addr netip.AddrPort, log *slog.Logger) (stop func(), err error) {
	if !addr.IsValid() {
		return func() {}, nil
	}
	ln, err := net.Listen("tcp", addr.String())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &http.Server{
		Handler:        debugHandler(),
		ReadTimeout:    debugReadTimeout,
		WriteTimeout:   debugWriteTimeout,
		IdleTimeout:    debugIdleTimeout,
		MaxHeaderBytes: debugMaxHeader,
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	log.Info("debugging is listening", "address", ln.Addr().String())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			log.Warn("debugging ended", "error", err)
		}
	})
	return func() {
		cancel() // profiles under way end with their requests
		budget, done := context.WithTimeout(context.Background(), debugShutdownBudget)
		defer done()
		if s.Shutdown(budget) != nil {
			s.Close()
		}
		wg.Wait()
	}, nil
}

// debugHandler has no /debug/pprof/cmdline: the command line may hold a link.
func debugHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/cmdline", http.NotFound)
	mux.HandleFunc("GET /debug/runtime", serveRuntime)
	return localOnly(mux)
}

// localOnly refuses requests for other names than this machine's own: a web page
// whose name was made to resolve to 127.0.0.1 must not read them.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if host != "localhost" && (err != nil || !ip.Unmap().IsLoopback()) {
			http.Error(w, "this is for requests to a loopback address", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// runtimeCounts is the JSON of /debug/runtime. A figure that the system does not have is
// null.
type runtimeCounts struct {
	Goroutines  int     `json:"goroutines"`
	HeapBytes   uint64  `json:"heap_bytes"`   // of objects, reachable or not yet swept
	StackBytes  uint64  `json:"stack_bytes"`  // of goroutines
	SystemBytes uint64  `json:"system_bytes"` // that the Go runtime has from the system
	Descriptors *int    `json:"descriptors"`
	RSSBytes    *uint64 `json:"rss_bytes"`
}

// serveRuntime collects garbage first if asked with ?gc=1: twice, because the first
// collection only moves the objects of a sync.Pool to its victim cache.
func serveRuntime(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("gc") == "1" {
		runtime.GC()
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(runtimeCounts{
		Goroutines: runtime.NumGoroutine(),
		HeapBytes:  tune.HeapBytes(&m), StackBytes: m.StackInuse, SystemBytes: m.Sys,
		Descriptors: openDescriptors(), RSSBytes: residentBytes(),
	})
}

// openDescriptors returns the number of open descriptors, without the one that it reads
// /proc with, or nil if there is no /proc.
func openDescriptors() *int {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil
	}
	n := len(names) - 1
	return &n
}

// residentBytes reads the second field of /proc/self/statm, which counts pages.
func residentBytes() *uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return nil
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return nil
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return nil
	}
	n := pages * uint64(os.Getpagesize())
	return &n
}
