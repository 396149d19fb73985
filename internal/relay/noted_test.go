package relay

import (
	"bytes"
	"testing"

	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

// loopStream is a stream that returns the bytes written to it.
type loopStream struct {
	carrier.Stream // nil: no other method is called
	buf            bytes.Buffer
	beside         func() int64
}

func (s *loopStream) Read(p []byte) (int, error)  { return s.buf.Read(p) }
func (s *loopStream) Write(p []byte) (int, error) { return s.buf.Write(p) }

func (s *loopStream) WriteFramed(b []byte) (int, error) { return s.Write(b[tunnel.Headroom:]) }
func (s *loopStream) CountBeside(bytes func() int64)    { s.beside = bytes }

func TestNotedStreamNotesReadsAndWrites(t *testing.T) {
	notes := 0
	inner := &loopStream{}
	s := Noted(inner, func() { notes++ })
	b := make([]byte, tunnel.Headroom+1)
	for _, step := range []struct {
		name string
		call func() (int, error)
		want int // notes by then
	}{
		{"Write", func() (int, error) { return s.Write(b[:1]) }, 1},
		{"WriteFramed", func() (int, error) { return s.WriteFramed(b) }, 2},
		{"Read", func() (int, error) { return s.Read(b) }, 3},
		{"Read of nothing", func() (int, error) { return s.Read(b) }, 3},
	} {
		if _, _ = step.call(); notes != step.want {
			t.Errorf("%s: %d notes, want %d", step.name, notes, step.want)
		}
	}
	s.(interface{ CountBeside(func() int64) }).CountBeside(func() int64 { return 7 })
	if inner.beside == nil || inner.beside() != 7 {
		t.Error("CountBeside did not reach the stream")
	}
}
