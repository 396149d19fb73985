package relay

import (
	"wmproxy/tunnel/carrier"
)

// Noted returns a stream that is like s and calls note whenever it has read or written
// data. note must not block.
func Noted(s carrier.Stream, note func()) carrier.Stream { return noted{s, note} }

type noted struct {
	carrier.Stream
	note func()
}

func (s noted) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	s.noteSome(n)
	return n, err
}

func (s noted) Write(p []byte) (int, error) {
	n, err := s.Stream.Write(p)
	s.noteSome(n)
	return n, err
}

func (s noted) WriteFramed(b []byte) (int, error) {
	n, err := s.Stream.WriteFramed(b)
	s.noteSome(n)
	return n, err
}

// CountBeside calls that of the stream within, if it has one.
func (s noted) CountBeside(bytes func() int64) {
	if counts, ok := s.Stream.(interface{ CountBeside(func() int64) }); ok {
		counts.CountBeside(bytes)
	}
}

func (s noted) noteSome(n int) {
	if n > 0 {
		s.note()
	}
}
