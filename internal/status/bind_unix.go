//go:build !windows

package status

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
)

const errRefused = syscall.ECONNREFUSED

// bind makes the socket in a directory that is closed to others, since its mode can be set
// only once it is there, and then moves it to path, over what is left there.
func bind(path string) (net.Listener, error) {
	nest := filepath.Join(filepath.Dir(path), ".status")
	if err := os.RemoveAll(nest); err != nil { // of a process that was killed
		return nil, err
	}
	if err := os.Mkdir(nest, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(nest)
	inside := filepath.Join(nest, "s") // no longer than path
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: inside, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	err = os.Chmod(inside, 0o600)
	if err == nil {
		err = os.Rename(inside, path)
	}
	if err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}
