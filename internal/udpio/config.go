package udpio

// Config is how a Socket or PacketConn is opened. The zero value is the default.
type Config struct {
	NoOffload   bool // no UDP_SEGMENT, no UDP_GRO
	ReadBuffer  int  // SO_RCVBUF in bytes; 0 leaves the system's, on Linux until the Socket is busy
	WriteBuffer int  // SO_SNDBUF in bytes; 0 leaves the system's

	// TellLocal sets Message.Local to the address of ours that each datagram was sent to:
	// a Socket on the wildcard address cannot answer from there without knowing. Linux
	// only; elsewhere the system chooses the address that answers leave from.
	TellLocal bool
}
