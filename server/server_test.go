package server

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/config"
	"wmproxy/internal/link"
	"wmproxy/internal/state"
	"wmproxy/internal/testmain"
)

func TestMain(m *testing.M) { testmain.Run(m) }

func openState(t *testing.T) *state.Dir {
	t.Helper()
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

func TestTheRandomTokenIsMadeOnceAndKept(t *testing.T) {
	dir := openState(t)
	first, err := loadTokens(nil, dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := loadTokens(nil, dir)
	if err != nil || again[0] != first[0] {
		t.Errorf("a second start has another token, %v", err)
	}
	if info, err := os.Stat(dir.Join(fileToken)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v", info.Mode(), err)
	}
	if err := os.Remove(dir.Join(fileToken)); err != nil {
		t.Fatal(err)
	}
	rotated, err := loadTokens(nil, dir)
	if err != nil || rotated[0].Secret == first[0].Secret {
		t.Errorf("deleting the file did not make a new token, %v", err)
	}
}

func TestGivenTokensReplaceTheRandomOne(t *testing.T) {
	dir := openState(t)
	given := []link.Token{{Name: "alice", Secret: "a"}, {Name: "bob", Secret: "b"}}
	got, err := loadTokens(given, dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(given, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := dir.ReadFile(fileToken); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a token file was written, %v", err)
	}
}

func TestADamagedTokenFileSaysWhatToDo(t *testing.T) {
	dir := openState(t)
	if err := dir.WriteFile(fileToken, []byte("nonsense\n")); err != nil {
		t.Fatal(err)
	}
	_, err := loadTokens(nil, dir)
	if err == nil || !strings.Contains(err.Error(), "delete it to make a new one") {
		t.Errorf("got %v", err)
	}
}

func TestWhatTheLinkAdvertises(t *testing.T) {
	for _, c := range []struct {
		advertise, listen, host string
		port                    uint16
	}{
		{"vpn.example.net", ":8090", "vpn.example.net", 8090},
		{"vpn.example.net:443", ":8090", "vpn.example.net", 443},
		{"[2001:db8::1]:443", ":8090", "2001:db8::1", 443},
		{"2001:db8::1", ":8090", "2001:db8::1", 8090},
		{"", "203.0.113.5:8090", "203.0.113.5", 8090},
		{"", "[::1]:8090", "::1", 8090},
	} {
		s := &Server{cfg: Config{Server: config.Server{Advertise: c.advertise, Listen: c.listen}}}
		id, err := (&Server{cfg: Config{State: openState(t)}}).loadIdentity()
		if err != nil {
			t.Fatal(err)
		}
		host, port := s.advertised(id, 8090)
		if host != c.host || port != c.port {
			t.Errorf("%q on %q: %s, %d; want %s, %d", c.advertise, c.listen, host, port, c.host, c.port)
		}
	}
}

func TestFreePortIsChosenAgainIfTakenForUDP(t *testing.T) {
	for _, c := range []struct {
		port            string
		failures, opens int
	}{
		{"0", 0, 1},
		{"0", 3, 4},
		{"0", 99, portTries},
		{"4433", 99, 1},
	} {
		opens := 0
		err := onFreePort(c.port, func() error {
			if opens++; opens <= c.failures {
				return syscall.EADDRINUSE
			}
			return nil
		})
		if failed := c.opens <= c.failures; opens != c.opens || (err != nil) != failed {
			t.Errorf("port %s with %d failures: opened %d times, %v; want %d times", c.port, c.failures, opens, err, c.opens)
		}
	}
}
