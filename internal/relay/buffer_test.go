package relay

import (
	"io"
	"testing"

	"wmproxy/tunnel/carrier"
)

// sized is a reader that returns reads of these sizes, or of the buffer's size if that is smaller.
type sized []int

func (s *sized) Read(p []byte) (int, error) {
	if len(*s) == 0 {
		return 0, io.EOF
	}
	n := min((*s)[0], len(p))
	*s = (*s)[1:]
	return n, nil
}

func TestLargeReadsGetLargeBuffer(t *testing.T) {
	var b buffer
	defer b.free()
	const most = smallBuffer * 3 / 4
	r := sized{1, most, most + 1, largeBuffer + 1, most + 1, most, largeBuffer}
	for i, want := range []struct{ n, room int }{
		{1, smallBuffer},
		{most, smallBuffer},
		{most + 1, smallBuffer},
		{largeBuffer, largeBuffer},
		{most + 1, largeBuffer},
		{most, largeBuffer},
		{smallBuffer, smallBuffer},
		{0, largeBuffer},
	} {
		p, err := b.read(&r)
		if len(p) != want.n || len(b.b) != carrier.Headroom+want.room || (err == io.EOF) != (want.n == 0) {
			t.Errorf("read %d: %d bytes with room for %d, %v; want %d with %d", i, len(p), len(b.b), err, want.n, want.room)
		}
	}
}

func TestLargeBuffersAreBounded(t *testing.T) {
	all := make([]buffer, maxLarge+1)
	for i := range all {
		for range 2 {
			all[i].read(&sized{smallBuffer})
		}
		want := largeBuffer
		if i == maxLarge {
			want = smallBuffer
		}
		if len(all[i].b) != carrier.Headroom+want {
			t.Fatalf("buffer %d holds %d bytes, want %d", i, len(all[i].b), want)
		}
	}
	for i := range all {
		all[i].free()
	}
	if n := largeHeld.Load(); n != 0 {
		t.Errorf("%d are counted after all were freed", n)
	}
}
