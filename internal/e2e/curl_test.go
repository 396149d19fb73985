package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// 20 MB from and to a real HTTP server.
func TestCurlDownloadsAndUploads(t *testing.T) {
	t.Parallel()
	curl := debian(t, "curl", "curl")
	body := random(20, 20<<20)
	want := hex.EncodeToString(sha(body))
	file := filepath.Join(t.TempDir(), "upload")
	if err := os.WriteFile(file, body, 0o600); err != nil {
		t.Fatal(err)
	}
	v4, v6 := startHTTP(t, "127.0.0.1:0", body), startHTTP(t, "[::1]:0", body)
	name := "localhost" + v4[strings.LastIndexByte(v4, ':'):]

	overEach(t, everyKind, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, []string{"--user", "alice", "--pass", "secret-of-curl"})
		fetch := func(t *testing.T, how string, args ...string) {
			t.Helper()
			proxy := []string{"-sS", "--fail", "--max-time", "60", "--noproxy", "", how, tu.Entry.Addr.String(), "--proxy-user", "alice:secret-of-curl"}
			cmd := exec.Command(curl, append(proxy, args...)...)
			cmd.Env = environment(t)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatalf("curl %s: %v: %s", strings.Join(args, " "), err, &stderr)
			}
			got := stdout.Bytes()
			if len(got) != 2*sha256.Size { // not a hash
				got = []byte(hex.EncodeToString(sha(got)))
			}
			if string(got) != want {
				t.Errorf("curl %s %s: the SHA-256 is %s, want %s", how, strings.Join(args, " "), got, want)
			}
		}
		fetch(t, "--socks5-hostname", "http://"+name)
		fetch(t, "--socks5", "http://"+v4)
		fetch(t, "--socks5", "http://"+v6)
		fetch(t, "--socks5-hostname", "--upload-file", file, "http://"+name)
		fetch(t, "--socks5", "--upload-file", file, "http://"+v6)
	})
}

func sha(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

// startHTTP starts a server that sends body, and answers uploads with their SHA-256 in
// hex. It returns its host and port.
func startHTTP(t *testing.T, addr string, body []byte) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = w.Write(body)
			return
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%x", sum.Sum(nil))
	}))
	s.Listener.Close()
	s.Listener = listenTCP(t, addr)
	s.Start()
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}
