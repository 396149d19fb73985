package relay

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

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

func (s *loopStream) WriteFramed(b []byte) (int, error) { return s.Write(b[carrier.Headroom:]) }
func (s *loopStream) CountBeside(bytes func() int64)    { s.beside = bytes }

func TestNotedStreamNotesReadsAndWrites(t *testing.T) {
	type passed struct{ Calls, Read, Written int }
	var got passed
	inner := &loopStream{}
	s := Noted(inner, func(n int) { got.Calls++; got.Read += n }, func(n int) { got.Calls++; got.Written += n })
	b := make([]byte, carrier.Headroom+1)
	for _, step := range []struct {
		name string
		call func() (int, error)
		want passed // by then
	}{
		{"Write", func() (int, error) { return s.Write(b[:1]) }, passed{1, 0, 1}},
		{"WriteFramed", func() (int, error) { return s.WriteFramed(b) }, passed{2, 0, 2}},
		{"Read", func() (int, error) { return s.Read(b) }, passed{3, 2, 2}},
		{"Read of nothing", func() (int, error) { return s.Read(b) }, passed{3, 2, 2}},
	} {
		_, _ = step.call()
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
	}
	s.(interface{ CountBeside(func() int64) }).CountBeside(func() int64 { return 7 })
	if inner.beside == nil || inner.beside() != 7 {
		t.Error("CountBeside did not reach the stream")
	}
}
