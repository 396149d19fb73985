package status

import (
	"net"
	"os"

	"golang.org/x/sys/windows"
)

const errRefused = windows.WSAECONNREFUSED

// bind makes the socket. The users that may open it are those of the directory.
func bind(path string) (net.Listener, error) {
	_ = os.Remove(path)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	return ln, nil
}
