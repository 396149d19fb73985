package status

import (
	"net"
	"os"

	"golang.org/x/sys/windows"
)

const errRefused = windows.WSAECONNREFUSED

// bind makes the socket; whom the state directory lets in, it lets in too.
func bind(path string) (net.Listener, error) {
	_ = os.Remove(path)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	return ln, nil
}
