package e2e

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// command runs a program to its end and returns its output.
func command(t *testing.T, dir, name string, args ...string) (stdout string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*waitTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = environment(t, "HOME="+t.TempDir(), "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, &errs)
	}
	return out.String(), err
}

// serveHTTP serves h on loopback and returns its URL.
func serveHTTP(t *testing.T, h http.Handler) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestCurlPassesTheHTTPProxy(t *testing.T) {
	t.Parallel()
	curl := debian(t, "curl", "curl")
	body := random(21, 5<<20)
	sum := hex.EncodeToString(sha(body))
	file := filepath.Join(t.TempDir(), "upload")
	if err := os.WriteFile(file, body, 0o600); err != nil {
		t.Fatal(err)
	}
	plain := startHTTP(t, "127.0.0.1:0", body)
	named := "localhost" + plain[strings.LastIndexByte(plain, ':'):]
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
	t.Cleanup(secure.Close)

	overEach(t, []string{overBoth, overProxy}, func(t *testing.T, kind string) {
		guarded := startOver(t, kind, nil, []string{"--user", "alice", "--pass", "secret-of-http"}).Entry
		open := startOver(t, kind, nil, nil).Entry
		run := func(t *testing.T, entry *socksProcess, how string, args ...string) (string, error) {
			return command(t, "", curl, append([]string{
				"-sS", "--fail", "--max-time", "60", "--noproxy", "", "--proxy", how + entry.Addr.String(),
			}, args...)...)
		}
		const user = "alice:secret-of-http"
		for _, c := range []struct {
			name  string
			entry *socksProcess
			how   string
			args  []string
		}{
			{"GET", guarded, "http://", []string{"-U", user, "http://" + plain}},
			{"GET by name", guarded, "http://", []string{"-U", user, "http://" + named}},
			{"PUT", guarded, "http://", []string{"-U", user, "-T", file, "http://" + plain}},
			{"PUT in chunks", guarded, "http://", []string{"-U", user, "-H", "Transfer-Encoding: chunked", "-T", file, "http://" + plain}},
			{"POST with Expect", open, "http://", []string{"-H", "Expect: 100-continue", "--data-binary", "@" + file, "http://" + plain}},
			{"any authentication", guarded, "http://", []string{"--proxy-anyauth", "-U", user, "http://" + plain}},
			{"CONNECT", guarded, "http://", []string{"-p", "-U", user, "http://" + named}},
			{"CONNECT with TLS", guarded, "http://", []string{"-U", user, "-k", secure.URL}},
			{"CONNECT with PUT", open, "http://", []string{"-p", "-T", file, "http://" + plain}},
			{"two on one connection", open, "http://", []string{"-o", "/dev/null", "http://" + plain, "http://" + named}},
			{"SOCKS4", open, "socks4://", []string{"http://" + plain}},
			{"SOCKS4a", open, "socks4a://", []string{"http://" + named}},
			{"SOCKS4 with TLS", open, "socks4://", []string{"-k", secure.URL}},
		} {
			out, err := run(t, c.entry, c.how, c.args...)
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			} else if out != sum && hex.EncodeToString(sha([]byte(out))) != sum {
				t.Errorf("%s: %d bytes that are not the file or its hash", c.name, len(out))
			}
		}
		for _, c := range []struct {
			name, how, want string
			args            []string
		}{
			{"no password", "http://", "407", []string{"-w", "%{http_code}", "http://" + plain}},
			{"a wrong password", "http://", "407", []string{"-w", "%{http_code}", "-U", "alice:secret-of-bob", "http://" + plain}},
			{"no password for CONNECT", "http://", "407", []string{"-w", "%{http_connect}", "-p", "http://" + plain}},
			{"SOCKS4", "socks4://", "", []string{"http://" + plain}},
		} {
			if out, err := run(t, guarded, c.how, append([]string{"-o", "/dev/null"}, c.args...)...); err == nil || out != c.want {
				t.Errorf("%s: status %q, %v; want %q", c.name, out, err, c.want)
			}
		}
		for url, want := range map[string]string{
			"http://10.255.255.1":         "403",
			"http://127.0.0.1:1":          "502",
			"http://no-such-name.invalid": "502",
			"ftp://127.0.0.1/":            "400",
		} {
			if out, _ := run(t, open, "http://", "-o", "/dev/null", "-w", "%{http_code}", url); out != want {
				t.Errorf("%s: status %q, want %s", url, out, want)
			}
		}
		if out, _ := command(t, "", curl, "-sS", "--noproxy", "*", "http://"+open.Addr.String()); !strings.Contains(out, "This is wmproxy") {
			t.Errorf("a browser is told %q", out)
		}
		guarded.secrets = append(guarded.secrets, "secret-of-bob")
	})
}

func TestGitClonesAndPushesOverTheHTTPProxy(t *testing.T) {
	t.Parallel()
	git := debian(t, "git", "git")
	core, err := command(t, "", git, "--exec-path")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	as := func(dir string, args ...string) string {
		t.Helper()
		out, err := command(t, dir, git, append([]string{"-c", "user.name=a", "-c", "user.email=a@example.org"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	origin, clone := filepath.Join(dir, "origin.git"), filepath.Join(dir, "clone")
	as(dir, "init", "-q", "--bare", origin)
	as(origin, "config", "http.receivepack", "true")
	first := as(origin, "commit-tree", "-m", "first", as(origin, "write-tree"))
	as(origin, "update-ref", as(origin, "symbolic-ref", "HEAD"), first)
	url := serveHTTP(t, &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(core), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"},
	}) + "/origin.git"

	proxy := "http.proxy=http://" + startOver(t, overBoth, nil, nil).Entry.Addr.String()
	as(dir, "-c", proxy, "clone", "-q", url, clone)
	if err := os.WriteFile(filepath.Join(clone, "file"), random(22, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	as(clone, "add", ".")
	as(clone, "commit", "-q", "-m", "second")
	as(clone, "-c", proxy, "-c", "http.postBuffer=8388608", "push", "-q", "origin", "HEAD") // CGI knows no chunks
	if got, want := as(origin, "rev-parse", "HEAD"), as(clone, "rev-parse", "HEAD"); got != want || got == first {
		t.Errorf("the origin has %s, the clone %s", got, want)
	}
}

func TestAptUpdatesOverTheHTTPProxy(t *testing.T) {
	t.Parallel()
	apt := debian(t, "apt-get", "apt")
	const packages = "Package: from-the-test\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nFilename: ./x.deb\nSize: 1\nSHA256: " +
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nDescription: a test\n"
	var fetched atomic.Int32
	url := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path.Base(r.URL.Path) != "Packages" {
			http.NotFound(w, r)
			return
		}
		fetched.Add(1)
		_, _ = io.WriteString(w, packages)
	}))
	dir := t.TempDir()
	for _, sub := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	list := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(list, []byte("deb [trusted=yes] "+url+" ./\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := command(t, dir, apt, "-o", "Dir::Etc::sourcelist="+list, "-o", "Dir::Etc::sourceparts=-", "-o", "Dir::State::lists="+filepath.Join(dir, "lists"),
		"-o", "Dir::Cache="+filepath.Join(dir, "cache"), "-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none",
		"-o", "Acquire::http::Proxy=http://"+startOver(t, overBoth, nil, nil).Entry.Addr.String(), "update")
	if err != nil {
		t.Fatal(err)
	}
	if n := fetched.Load(); n != 1 {
		t.Errorf("the list of packages was fetched %d times, want once", n)
	}
}

func TestHTTPRequestPassesACrowdOfHalfHeads(t *testing.T) {
	t.Parallel()
	curl := debian(t, "curl", "curl")
	target := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "passed") }))
	entry := startProxy(t).Addr.String()
	head := "GET http://example.org/ HTTP/1.1\r\nX: " + strings.Repeat("x", 1000)
	garbage := "POST \x00\xff\r\n\r\n"
	for i := range 1500 {
		c, err := net.DialTimeout("tcp", entry, waitTimeout)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetWriteDeadline(time.Now().Add(waitTimeout))
		_, _ = io.WriteString(c, []string{head, garbage}[i%2]) // the server may have closed it to make room
	}
	for _, args := range [][]string{{}, {"-p"}} {
		out, err := command(t, "", curl, append(args, "-sS", "--fail", "--max-time", "30", "--noproxy", "", "-x", "http://"+entry, target)...)
		if err != nil || out != "passed" {
			t.Errorf("%q: %q, %v", args, out, err)
		}
	}
}

// An aborted download ends while its data still comes, and a refused upload while data is still written.
func TestAbortedHTTPRequestsHarmNoOther(t *testing.T) {
	t.Parallel()
	target := strings.TrimPrefix(serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.Header().Set("Content-Length", "0")
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		for b := random(22, 64<<10); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})), "http://")
	overEach(t, []string{overYamux, overQUIC}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		other := connect(t, tu.Entry.Socks(), startEcho(t))
		request := func(head string, body int) {
			c, err := net.Dial("tcp", tu.Entry.Addr.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(waitTimeout))
			if _, err := io.WriteString(c, head); err != nil {
				t.Fatal(err)
			}
			go c.Write(make([]byte, body))
			if _, err := io.ReadFull(c, make([]byte, 100)); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%q: %v", head[:4], err)
			}
		}
		for range 100 {
			request("GET http://"+target+"/ HTTP/1.1\r\nHost: "+target+"\r\n\r\n", 0)
		}
		for range 10 {
			request("POST http://"+target+"/ HTTP/1.1\r\nHost: "+target+"\r\nContent-Length: 9000000\r\n\r\n", 9000000)
		}
		_ = other.SetDeadline(time.Now().Add(waitTimeout))
		if _, err := other.Write([]byte("alive")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(other, make([]byte, 5)); err != nil {
			t.Errorf("a stream that was open beside the aborted requests: %v", err)
		}
	})
}
