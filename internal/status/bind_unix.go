//go:build !windows

package status

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
)

const errRefused = syscall.ECONNREFUSED

// bind makes the socket in a private directory, because its mode can only be changed
// afterwards, and then renames it to path, replacing an old socket.
func bind(path string) (net.Listener, error) {
	private := filepath.Join(filepath.Dir(path), ".status")
	if err := os.RemoveAll(private); err != nil { // left behind by a process that was killed
		return nil, err
	}
	if err := os.Mkdir(private, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	name := filepath.Join(private, "s") // not longer than path
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	err = os.Chmod(name, 0o600)
	if err == nil {
		err = os.Rename(name, path)
	}
	if err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}
