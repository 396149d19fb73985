package udpio

import (
	"net"

	"golang.org/x/sys/unix"
)

// Buffered returns how many bytes the kernel holds for conn, in both directions: bytes
// not yet read, and bytes sent and not acknowledged. It is 0 if conn is not TCP.
func Buffered(conn net.Conn) (n int64) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return 0
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		for _, queue := range []uint{unix.SIOCINQ, unix.SIOCOUTQ} {
			if in, err := unix.IoctlGetUint32(int(fd), queue); err == nil { // an int of C
				n += int64(in)
			}
		}
	})
	return n
}
