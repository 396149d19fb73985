package udpio

// Config is how a Socket or PacketConn is opened. The zero value is the default.
type Config struct {
	NoOffload   bool // no UDP_SEGMENT, no UDP_GRO
	ReadBuffer  int  // SO_RCVBUF in bytes; 0 leaves the system's
	WriteBuffer int  // SO_SNDBUF in bytes; 0 leaves the system's
}
