package tcp

import (
	"net"
	"time"

	"golang.org/x/sys/unix"

	"wmproxy/tunnel/carrier"
)

// tcpStats asks the kernel. What an old one does not know stays zero.
func tcpStats(conn net.Conn) (s carrier.Stats) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return s
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return s
	}
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		s = carrier.Stats{
			RTT:     time.Duration(info.Rtt) * time.Microsecond,
			BytesUp: info.Bytes_sent, BytesDown: info.Bytes_received,
			PacketsUp: uint64(info.Data_segs_out), PacketsLost: uint64(info.Total_retrans),
		}
	})
	return s
}
