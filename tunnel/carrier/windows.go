package carrier

const (
	// MaxStreamWindow bounds the bytes that the peer may send on a stream that is not
	// being read: one stream moves 4 MiB per round trip, 320 Mbit/s at 100 ms.
	MaxStreamWindow = 4 << 20

	// minStreamWindow is yamux's own minimum.
	minStreamWindow = 256 << 10

	// windowShare is the part of a memory budget, as a divisor, that one stream may take.
	windowShare = 128
)

// Windows are the flow-control windows of a carrier: how much the peer may send
// before we read it. The zero value is the default.
type Windows struct {
	Stream uint64 // the largest of one stream, in bytes; 0 means 4 MiB
}

// WindowsFor returns windows for a process that may hold so many bytes for its
// peers; 0 is no bound.
func WindowsFor(memory int64) Windows {
	if memory <= 0 {
		return Windows{}
	}
	return Windows{Stream: uint64(min(max(memory/windowShare, minStreamWindow), MaxStreamWindow))}
}

// WithDefaults returns w with the defaults in place of zero.
func (w Windows) WithDefaults() Windows {
	if w.Stream == 0 {
		w.Stream = MaxStreamWindow
	}
	return w
}
