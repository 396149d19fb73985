package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func TestDebuggingIsOffUnlessAsked(t *testing.T) {
	o, err := configOf(t, nil, (*program).serverConfig, "server")
	if err != nil || o.Debug.IsValid() {
		t.Errorf("got %v, %v", o.Debug, err)
	}
	stop, err := startDebug(netip.AddrPort{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	stop()
}

func TestDebuggingListensOnLoopbackAlone(t *testing.T) {
	for _, test := range []struct {
		text string
		ok   bool
	}{
		{"127.0.0.1:6060", true},
		{"127.8.9.10:0", true},
		{"[::1]:6060", true},
		{"[::ffff:127.0.0.1]:6060", true},
		{"0.0.0.0:6060", false},
		{"[::]:6060", false},
		{":6060", false},
		{"192.0.2.1:6060", false},
		{"[::ffff:192.0.2.1]:6060", false},
		{"[fe80::1%lo]:6060", false},
		{"localhost:6060", false}, // may be anything
		{"127.0.0.1", false},
		{"127.0.0.1:70000", false},
		{"6060", false},
	} {
		readers := map[string]func() error{
			"server": func() error {
				_, err := configOf(t, nil, (*program).serverConfig, "server", "--debug", test.text)
				return err
			},
			"client": func() error {
				_, err := configOf(t, nil, (*program).clientConfig, "client", testLink, "--debug", test.text)
				return err
			},
			"proxy": func() error {
				_, err := configOf(t, nil, (*program).proxyConfig, "proxy", "--debug", test.text)
				return err
			},
		}
		for command, read := range readers {
			err := read()
			if (err == nil) != test.ok {
				t.Errorf("%s --debug %s: %v", command, test.text, err)
			}
			if err != nil && (!errors.As(err, new(*usageError)) || !strings.HasPrefix(err.Error(), "debug (--debug): must be ")) {
				t.Errorf("%s --debug %s: %v", command, test.text, err)
			}
		}
	}
}

// debugging starts the server and returns a function that asks it.
func debugging(t *testing.T) (get func(path, host string) (*http.Response, error), stop func()) {
	t.Helper()
	var log bytes.Buffer
	stop, err := startDebug(netip.MustParseAddrPort("127.0.0.1:0"), slog.New(slog.NewJSONHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	var logged struct{ Address string }
	if err := json.Unmarshal(log.Bytes(), &logged); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return func(path, host string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+logged.Address+path, nil)
		if err != nil {
			return nil, err
		}
		req.Host = host
		return client.Do(req)
	}, stop
}

func TestDebuggingCountsGoroutinesMemoryAndDescriptors(t *testing.T) {
	get, stop := debugging(t)
	defer stop()
	counts := func() (c runtimeCounts) {
		resp, err := get("/debug/runtime?gc=1", "")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := counts()
	if before.Goroutines < 2 || before.HeapBytes == 0 || before.StackBytes == 0 || before.SystemBytes < before.HeapBytes {
		t.Errorf("got %+v", before)
	}
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		if before.Descriptors != nil || before.RSSBytes != nil {
			t.Errorf("without /proc: %+v", before)
		}
		return
	}
	// What earlier requests and tests have not closed yet may go meanwhile.
	const pipes, others = 50, 20
	for range pipes {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
	}
	after := counts()
	if more := *after.Descriptors - *before.Descriptors; more < 2*pipes-others || more > 2*pipes+others {
		t.Errorf("%d descriptors, then %d with %d pipes", *before.Descriptors, *after.Descriptors, pipes)
	}
	if *after.RSSBytes < after.HeapBytes {
		t.Errorf("%d bytes resident, %d of heap", *after.RSSBytes, after.HeapBytes)
	}
}

func TestDebuggingServesProfilesAndNoCommandLine(t *testing.T) {
	get, stop := debugging(t)
	defer stop()
	for _, test := range []struct {
		path, host string
		want       int
	}{
		{"/debug/pprof/", "", http.StatusOK},
		{"/debug/pprof/goroutine?debug=1", "localhost:1", http.StatusOK},
		{"/debug/pprof/heap", "[::1]:6060", http.StatusOK},
		{"/debug/pprof/cmdline", "", http.StatusNotFound},
		{"/debug/runtime", "rebound.example", http.StatusForbidden},
		{"/debug/runtime", "192.0.2.1:80", http.StatusForbidden},
		{"/", "", http.StatusNotFound},
	} {
		resp, err := get(test.path, test.host)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != test.want || len(body) == 0 {
			t.Errorf("%s for %q: %s, %d bytes", test.path, test.host, resp.Status, len(body))
		}
	}
}

func TestDebuggingEndsWithAProfileUnderWay(t *testing.T) {
	get, stop := debugging(t)
	answered := make(chan error, 1)
	go func() {
		resp, err := get("/debug/pprof/trace?seconds=60", "")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		answered <- err
	}()
	// Once its handler sleeps, the profile is under way.
	deadline := time.Now().Add(10 * time.Second)
	for {
		resp, err := get("/debug/pprof/goroutine?debug=2", "")
		if err != nil {
			t.Fatal(err)
		}
		stacks, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if bytes.Contains(stacks, []byte("net/http/pprof.sleep")) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the profile did not start")
		}
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
	<-answered
}
