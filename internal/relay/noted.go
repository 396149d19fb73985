package relay

import (
	"wmproxy/tunnel/carrier"
)

// Noted returns a stream that is like s and calls read or written with the number of
// bytes whenever it has read or written some. They must not block.
func Noted(s carrier.Stream, read, written func(n int)) carrier.Stream {
	return noted{s, read, written}
}

type noted struct {
	carrier.Stream
	read, written func(n int)
}

func (s noted) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	noteSome(s.read, n)
	return n, err
}

func (s noted) Write(p []byte) (int, error) {
	n, err := s.Stream.Write(p)
	noteSome(s.written, n)
	return n, err
}

func (s noted) WriteFramed(b []byte) (int, error) {
	n, err := s.Stream.WriteFramed(b)
	noteSome(s.written, n)
	return n, err
}

// CountBeside calls that of the stream within, if it has one.
func (s noted) CountBeside(bytes func() int64) {
	if counts, ok := s.Stream.(interface{ CountBeside(func() int64) }); ok {
		counts.CountBeside(bytes)
	}
}

func noteSome(note func(int), n int) {
	if n > 0 {
		note(n)
	}
}
