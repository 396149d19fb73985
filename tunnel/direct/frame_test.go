package direct

import (
	"encoding/hex"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var sampleFrames = map[string]struct {
	frame Frame
	bytes string
}{
	"padding":        {Frame{Type: FramePadding}, "00"},
	"path challenge": {Frame{Type: FramePathChallenge, Data: [8]byte{1, 7: 8}}, "1a0100000000000008"},
	"path response":  {Frame{Type: FramePathResponse, Data: [8]byte{1, 7: 8}}, "1b0100000000000008"},
	"size probe":     {Frame{Type: FrameSizeProbe}, "21"},
	"size ack":       {Frame{Type: FrameSizeAck, Number: 300}, "22412c"},
	"datagram":       {Frame{Type: FrameDatagram, Bundle: []byte("ab")}, "306162"},
	"feedback": {
		Frame{Type: FrameFeedback, Feedback: Feedback{
			Sequence: 1, Highest: 1 << 40, SendTime: 0xffffffff, Arrival: 5, Hold: 70, Packets: 1 << 20, Bytes: 3,
			Duplicates: 63, CE: 64, LeastDelay: 1 << 31, MeanDelay: 9, Generation: 2,
		}},
		"20" + "01" + "c000010000000000" + "ffffffff" + "00000005" + "4046" + "80100000" + "03" + "3f" + "4040" + "80000000" + "09" + "02",
	},
}

func TestFramesHaveTheirLayout(t *testing.T) {
	for name, c := range sampleFrames {
		b := c.frame.Append(nil)
		if got := hex.EncodeToString(b); got != c.bytes {
			t.Errorf("%s: got %s, want %s", name, got, c.bytes)
		}
		f, rest, err := ParseFrame(b)
		if diff := cmp.Diff(c.frame, f); diff != "" || len(rest) > 0 || err != nil {
			t.Errorf("%s: rest %x, %v\n%s", name, rest, err, diff)
		}
		for n := range b {
			if _, _, err := ParseFrame(b[:n]); err == nil && (f.Type != FrameDatagram || n < 2) { // a bundle has any length
				t.Errorf("%s, cut to %d bytes: no error", name, n)
			}
		}
	}
	if _, _, err := ParseFrame([]byte{0x31, 1, 2}); err == nil {
		t.Error("an unknown frame: no error")
	}
}

func TestFramesFollowEachOther(t *testing.T) {
	feedback, probe := sampleFrames["feedback"].frame, Frame{Type: FrameSizeProbe}
	b := Pad(probe.Append(feedback.Append(nil)), 1200)
	if len(b)+Overhead != 1200 {
		t.Errorf("padded to %d bytes", len(b)+Overhead)
	}
	for _, want := range []FrameType{FrameFeedback, FrameSizeProbe, FramePadding} {
		f, rest, err := ParseFrame(b)
		if err != nil || f.Type != want {
			t.Fatalf("got %#x, %v, want %#x", f.Type, err, want)
		}
		b = rest
	}
	if len(b) > 0 {
		t.Errorf("%d bytes follow the padding", len(b))
	}
}

func TestLargeCountsStayVarints(t *testing.T) {
	f := Frame{Type: FrameSizeAck, Number: math.MaxUint64}
	if got, _, err := ParseFrame(f.Append(nil)); err != nil || got.Number != maxNumber {
		t.Errorf("got %d, %v", got.Number, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range sampleFrames {
		f.Add(c.frame.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			frame, rest, err := ParseFrame(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			again, _, err := ParseFrame(frame.Append(nil))
			if diff := cmp.Diff(frame, again); diff != "" || err != nil {
				t.Fatalf("%v\n%s", err, diff)
			}
			b = rest
		}
	})
}
