package wire

import (
	"bytes"
	"encoding/hex"
	"testing"
	"time"
)

func TestLayoutsAreThoseOfVersion2(t *testing.T) {
	hello := Hello{
		MinVersion: 2, MaxVersion: 2, User: "al", Token: "to", Session: [16]byte{1}, Attach: 300,
		Proof: [32]byte{31: 7}, Secret: bytes.Repeat([]byte{9}, SecretLen), Features: NamedAnswers,
	}
	welcome := Welcome{Version: 2, Instance: [16]byte{15: 3}, Resumed: true, MaxFlows: 65536, MaxStreams: 2048, Hold: 2 * time.Minute, Features: 1}
	probe := Probe{Pong: true, ID: 5, Sent: Counts{1, 2, 3, 4, 70}, Received: Counts{9}, Limit: 1200, Epoch: 2, Segments: 3, Resent: 1}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"hello": {hello.Append(nil), "0202" + "02616c02746f01000000000000000000000000000000412c" +
			"0000000000000000000000000000000000000000000000000000000000000007" + "01" +
			"0909090909090909090909090909090909090909090909090909090909090909" + "01"},
		"welcome":  {welcome.Append(nil), "020000000000000000000000000000000301800100004800" + "8001d4c001"},
		"probe":    {probe.Append(nil), "002402050102030440460900000000" + "44b0020301"},
		"record":   {append(AppendRecordHeader(nil, 70, 3), "abc"...), "404606616263"},
		"fragment": {append(AppendFragmentHeader(nil, 6, 2, 258, 1, 2), "ab"...), "0605010201026162"},
		"message":  {AppendMessage(nil, MsgRefuse, AppendSentence(nil, 5, "no")), "40450405026e6f"},
		"stream":   {AppendStreamHeader(nil, StreamConnect, []byte{1, 127, 0, 0, 1, 0, 80}), "010701" + "7f0000010050"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}
