package wire

import (
	"bufio"
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHelloSurvivesTheWire(t *testing.T) {
	for _, secret := range [][]byte{nil, bytes.Repeat([]byte{7}, SecretLen)} {
		want := Hello{
			MinVersion: 1, MaxVersion: 3, User: "alice", Token: strings.Repeat("s", maxToken),
			Session: [16]byte{1, 2, 3}, Attach: 1 << 30, Proof: [32]byte{9}, Secret: secret, Features: 5,
		}
		got, err := ParseHello(append(want.Append(nil), "more fields of a later version"...))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestAHelloOfAnotherVersionIsReadNoFurther(t *testing.T) {
	for _, versions := range [][2]byte{{0, MinVersion - 1}, {MaxVersion + 1, MaxVersion + 4}} {
		got, err := ParseHello([]byte{versions[0], versions[1], 0xff})
		if err != nil || got.MinVersion != uint64(versions[0]) || got.MaxVersion != uint64(versions[1]) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
}

func TestMalformedHellosAreRefused(t *testing.T) {
	good := (&Hello{MinVersion: MinVersion, MaxVersion: MaxVersion, User: "a", Token: "b", Secret: make([]byte, SecretLen)}).Append(nil)
	for n := range len(good) - 1 { // without its last byte, features, it is a good one
		if _, err := ParseHello(good[:n]); !errors.Is(err, errMessageTooShort) {
			t.Fatalf("%d of %d bytes: %v", n, len(good), err)
		}
	}
	long := (&Hello{MinVersion: MinVersion, MaxVersion: MaxVersion, User: strings.Repeat("u", maxUser+1), Token: "b"}).Append(nil)
	if _, err := ParseHello(long); err == nil {
		t.Error("a user of 65 bytes was taken")
	}
}

func TestWelcomeSurvivesTheWire(t *testing.T) {
	want := Welcome{Version: MaxVersion, Instance: [16]byte{5}, Resumed: true, MaxFlows: 10, MaxStreams: 20, Hold: 2 * time.Minute, Features: 1 << 40}
	got, err := ParseWelcome(want.Append(nil))
	if err != nil || *got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	want.Version = MaxVersion + 1
	if got, err := ParseWelcome(want.Append(nil)); err != nil || got.Known() {
		t.Errorf("a version that we do not speak: %v, known %v", err, got.Known())
	}
}

func TestPeerWithoutFeaturesHasNone(t *testing.T) {
	h := (&Hello{MinVersion: MinVersion, MaxVersion: MaxVersion, Features: 1}).Append(nil)
	if got, err := ParseHello(h[:len(h)-1]); err != nil || got.Features != 0 {
		t.Errorf("HELLO: got features %x, %v", got.Features, err)
	}
	w := (&Welcome{Version: MaxVersion, Features: 1}).Append(nil)
	if got, err := ParseWelcome(w[:len(w)-1]); err != nil || got.Features != 0 {
		t.Errorf("WELCOME: got features %x, %v", got.Features, err)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	r := bufio.NewReader(bytes.NewReader(AppendMessage(nil, MsgEnd, make([]byte, maxMessage+1))))
	if _, _, err := ReadMessage(r, nil); !errors.Is(err, ErrMessageTooLong) {
		t.Errorf("got %v, want %v", err, ErrMessageTooLong)
	}
}

func FuzzHello(f *testing.F) {
	f.Add((&Hello{MinVersion: MinVersion, MaxVersion: MaxVersion, User: "alice", Token: "token"}).Append(nil))
	f.Add((&Hello{MinVersion: MinVersion, MaxVersion: MaxVersion, Secret: make([]byte, SecretLen)}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHello(b)
		if err != nil || !h.Known() {
			return
		}
		if len(h.User) > maxUser || len(h.Token) > maxToken || h.Secret != nil && len(h.Secret) != SecretLen {
			t.Fatalf("out of bounds: %+v", h)
		}
		again, err := ParseHello(h.Append(nil))
		if err != nil || again.User != h.User || again.Token != h.Token || again.Proof != h.Proof {
			t.Fatalf("%+v became %+v, %v", h, again, err)
		}
	})
}

func FuzzMessages(f *testing.F) {
	f.Add(AppendMessage(nil, MsgWelcome, (&Welcome{Version: MaxVersion}).Append(nil)))
	f.Add(AppendMessage(nil, MsgRefuse, AppendSentence(nil, 5, "no")))
	f.Add(AppendMessage(nil, MsgEnd, []byte{0, 2, 0, 4, 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			_, payload, err := ReadMessage(r, nil)
			if err != nil {
				return
			}
			if len(payload) > maxMessage {
				t.Fatalf("payload of %d bytes", len(payload))
			}
			_, _ = ParseWelcome(payload)
			if _, reason, err := ParseSentence(payload); err == nil && len(reason) > maxSentence {
				t.Fatalf("sentence of %d bytes", len(reason))
			}
		}
	})
}
