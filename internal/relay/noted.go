package relay

import "wmproxy/tunnel"

// Noted returns s, and calls note whenever bytes pass it. note must not wait.
func Noted(s tunnel.Stream, note func()) tunnel.Stream { return noted{s, note} }

type noted struct {
	tunnel.Stream
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

// CountBeside passes the function on, as Run expects of a stream that counts.
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
