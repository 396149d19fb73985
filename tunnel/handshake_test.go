package tunnel

import (
	"bufio"
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestHelloSurvivesTheWire(t *testing.T) {
	for _, secret := range [][]byte{nil, bytes.Repeat([]byte{7}, secretLen)} {
		want := hello{
			minVersion: 1, maxVersion: 3, Credentials: Credentials{"alice", strings.Repeat("s", MaxToken)},
			session: SessionID{1, 2, 3}, attach: 1 << 30, proof: [32]byte{9}, secret: secret, features: 5,
		}
		got, err := parseHello(append(want.append(nil), "more fields of a later version"...))
		if err != nil {
			t.Fatal(err)
		}
		if got.minVersion != 1 || got.maxVersion != 3 || got.Credentials != want.Credentials || got.session != want.session ||
			got.attach != want.attach || got.proof != want.proof || !bytes.Equal(got.secret, secret) || got.features != 5 {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestAHelloOfAnotherVersionIsReadNoFurther(t *testing.T) {
	for _, versions := range [][2]byte{{0, minVersion - 1}, {maxVersion + 1, maxVersion + 4}} {
		got, err := parseHello([]byte{versions[0], versions[1], 0xff})
		if err != nil || got.minVersion != uint64(versions[0]) || got.maxVersion != uint64(versions[1]) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
}

func TestMalformedHellosAreRefused(t *testing.T) {
	good := (&hello{minVersion: minVersion, maxVersion: maxVersion, Credentials: Credentials{"a", "b"}, secret: make([]byte, secretLen)}).append(nil)
	for n := range len(good) - 1 { // without its last byte, features, it is a good one
		if _, err := parseHello(good[:n]); !errors.Is(err, errMessageTooShort) {
			t.Fatalf("%d of %d bytes: %v", n, len(good), err)
		}
	}
	long := (&hello{minVersion: minVersion, maxVersion: maxVersion, Credentials: Credentials{strings.Repeat("u", MaxUser+1), "b"}}).append(nil)
	if _, err := parseHello(long); err == nil {
		t.Error("a user of 65 bytes was taken")
	}
}

func TestWelcomeSurvivesTheWire(t *testing.T) {
	want := welcome{version: maxVersion, instance: [16]byte{5}, resumed: true, maxFlows: 10, maxStreams: 20, hold: 2 * time.Minute, features: 1 << 40}
	got, err := parseWelcome(want.append(nil))
	if err != nil || *got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	want.version = maxVersion + 1
	var closed *CloseError
	if _, err := parseWelcome(want.append(nil)); !errors.As(err, &closed) || closed.Code != CodeVersion {
		t.Errorf("a version that we do not speak: %v", err)
	}
}

func TestPeerWithoutFeaturesHasNone(t *testing.T) {
	h := (&hello{minVersion: minVersion, maxVersion: maxVersion, features: 1}).append(nil)
	if got, err := parseHello(h[:len(h)-1]); err != nil || got.features != 0 {
		t.Errorf("HELLO: got features %x, %v", got.features, err)
	}
	w := (&welcome{version: maxVersion, features: 1}).append(nil)
	if got, err := parseWelcome(w[:len(w)-1]); err != nil || got.features != 0 {
		t.Errorf("WELCOME: got features %x, %v", got.features, err)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	r := bufio.NewReader(bytes.NewReader(appendMessage(nil, msgEnd, make([]byte, maxMessage+1))))
	if _, _, err := readMessage(r, nil); !errors.Is(err, errMessageTooLong) {
		t.Errorf("got %v, want %v", err, errMessageTooLong)
	}
}

func FuzzHello(f *testing.F) {
	f.Add((&hello{minVersion: minVersion, maxVersion: maxVersion, Credentials: Credentials{"alice", "token"}}).append(nil))
	f.Add((&hello{minVersion: minVersion, maxVersion: maxVersion, secret: make([]byte, secretLen)}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil || h.minVersion > maxVersion || h.maxVersion < minVersion {
			return
		}
		if len(h.User) > MaxUser || len(h.Token) > MaxToken || h.secret != nil && len(h.secret) != secretLen {
			t.Fatalf("out of bounds: %+v", h)
		}
		again, err := parseHello(h.append(nil))
		if err != nil || again.Credentials != h.Credentials || again.proof != h.proof {
			t.Fatalf("%+v became %+v, %v", h, again, err)
		}
	})
}

func FuzzMessages(f *testing.F) {
	f.Add(appendMessage(nil, msgWelcome, (&welcome{version: maxVersion}).append(nil)))
	f.Add(appendMessage(nil, msgRefuse, appendSentence(nil, CodeAuth, "no")))
	f.Add(appendMessage(nil, msgEnd, []byte{0, 2, 0, 4, 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			_, payload, err := readMessage(r, nil)
			if err != nil {
				return
			}
			if len(payload) > maxMessage {
				t.Fatalf("payload of %d bytes", len(payload))
			}
			_, _ = parseWelcome(payload)
			if e, err := parseSentence(payload); err == nil && len(e.Reason) > maxSentence {
				t.Fatalf("sentence of %d bytes", len(e.Reason))
			}
		}
	})
}

// FuzzControl feeds control messages to a session as its peer would.
func FuzzControl(f *testing.F) {
	f.Add(uint64(msgEnd), []byte{0, 2, 0, 4, 1})
	f.Add(uint64(msgEnd), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0})
	f.Add(uint64(msgEndAck), []byte{5})
	f.Add(uint64(msgPrefer), []byte{1, 2, 3})
	f.Add(uint64(msgDrain), []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, kind uint64, payload []byte) {
		s := NewSession(SessionConfig{})
		defer s.Close(CodeNone, "")
		p := &Path{s: s, snd: newSender(false)}
		p.out.wake = make(chan struct{}, 1)
		_ = p.control(messageType(kind), payload)
		_, _ = p.out.append(nil, 0)
	})
}

func TestEndedFlowsAreRememberedInBoundedMemory(t *testing.T) {
	var e endedSet
	const n = (maxEndedPages + 4) * endedPageBits
	for id := uint64(2); id < 2*n; id += 2 {
		e.add(id)
	}
	if len(e.pages) != maxEndedPages {
		t.Errorf("%d pages, want %d", len(e.pages), maxEndedPages)
	}
	for _, c := range []struct {
		id   uint64
		want bool
	}{{2*n - 2, true}, {2*n - 2*endedPageBits*30, true}, {2, false}, {2*n + 2, false}, {2*n - 1, false}} {
		if got := e.has(c.id); got != c.want {
			t.Errorf("flow %d ended: %v, want %v", c.id, got, c.want)
		}
	}
}

func TestAcknowledgedEndsAreForgottenAndOthersSentAgain(t *testing.T) {
	var l endList
	for i := range uint64(10) {
		l.add(flowEnd{flow: 2 * i})
	}
	l.next = 10
	l.ack(4)
	l.ack(2) // late
	if l.first != 4 || len(l.pending) != 6 || l.next != 6 || l.pending[0].flow != 8 {
		t.Errorf("first %d, %d pending, next %d", l.first, len(l.pending), l.next)
	}
	l.ack(1 << 60) // a peer that makes things up
	if len(l.pending) != 0 || l.first != 10 || l.next != 0 {
		t.Errorf("first %d, %d pending, next %d", l.first, len(l.pending), l.next)
	}
	for i := range uint64(maxPendingEnds + 5) {
		l.add(flowEnd{flow: i})
	}
	if len(l.pending) != maxPendingEnds || l.first != 15 {
		t.Errorf("%d pending from %d, want %d from 15", len(l.pending), l.first, maxPendingEnds)
	}
}
