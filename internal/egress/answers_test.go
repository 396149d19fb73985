package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/udpio"
	"wmproxy/tunnel/wire"
)

// toNameAnswered is toName from a client that wants answers to carry the name.
func toNameAnswered(name string, port uint16, payload string) []byte {
	b := toName(name, port, payload)
	b[0] = wire.TypeNameAnswered
	return b
}

func TestAnswersCarryTheRequestedName(t *testing.T) {
	dns := newFakeDNS("game.test", "127.0.0.1", "plain.test", "127.0.0.1")
	close(dns.release)
	r, other := newRemote(t, "127.0.0.1"), newRemote(t, "127.0.0.1")
	f, link := openFlow(t, newExits(t, Config{Resolve: dns.lookup}))
	own := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), f.sock.Load().LocalAddr().Port())
	named, address := fmt.Sprintf("Game.test:%d", r.at.Port()), r.at.String()
	for i, c := range []struct {
		what string
		send []byte
		from *remote
		want string
	}{
		{"a name, as old clients send it", toName("Game.test", r.at.Port(), ""), r, address},
		{"a name, answered by name", toNameAnswered("Game.test", r.at.Port(), ""), r, named},
		{"another port of that address", nil, other, fmt.Sprintf("Game.test:%d", other.at.Port())},
		{"the address", to(r.at, ""), r, address},
		{"another port of that address, still", nil, other, fmt.Sprintf("Game.test:%d", other.at.Port())},
		{"that other port as an address", to(other.at, ""), other, other.at.String()},
		{"the name again", toNameAnswered("Game.test", r.at.Port(), ""), r, named},
		{"another name of the same address", toNameAnswered("plain.test", r.at.Port(), ""), r, fmt.Sprintf("plain.test:%d", r.at.Port())},
		{"a literal as a name", toNameAnswered("127.0.0.1", r.at.Port(), ""), r, address},
	} {
		if c.send != nil {
			send(f, c.send)
			c.from.get(t)
		}
		c.from.put(t, fmt.Sprint(i), own)
		if got, want := link.next(t), c.want+" "+fmt.Sprint(i); got != want {
			t.Errorf("%s: got %q, want %q", c.what, got, want)
		}
	}
}

func TestHeldDatagramsAreAnsweredByName(t *testing.T) {
	dns := newFakeDNS("slow.test", "127.0.0.1")
	r := newRemote(t, "127.0.0.1")
	f, link := openFlow(t, newExits(t, Config{Resolve: dns.lookup}))
	send(f, toNameAnswered("slow.test", r.at.Port(), "ask"))
	close(dns.release)
	_, from := r.get(t)
	r.put(t, "answer", netip.AddrPortFrom(r.at.Addr(), from.Port()))
	if got, want := link.next(t), fmt.Sprintf("slow.test:%d answer", r.at.Port()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestManyLongNamesInOneBatchKeepTheirOrder(t *testing.T) {
	f, link := openFlow(t, newExits(t, Config{Exit: permissive}))
	f.answers = make(answerTable)
	f.answersByName.Store(true)
	var ms []udpio.Message
	var want, got []string
	for i := range 3 * batchSize {
		from := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(1+i))
		name := fmt.Sprintf("%s%d", strings.Repeat("x", 250), i%maxFlowNames)
		if i%3 == 0 {
			f.answers.set(from, name)
		} else {
			name = "127.0.0.1"
		}
		ms = append(ms, udpio.Message{Body: fmt.Append(nil, i), Addr: from})
		want = append(want, fmt.Sprintf("%s:%d %d", name, from.Port(), i))
	}
	f.replies(ms)
	for range want {
		got = append(got, link.next(t))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAnswerNamesAreBounded(t *testing.T) {
	table := make(answerTable)
	for i := range 10 * maxAnswerNames {
		ip := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		to := netip.AddrPortFrom(ip, 80)
		table.asked(to, fmt.Sprint(i))
		table.addressed(netip.AddrPortFrom(ip, uint16(1000+i)))
		if len(table) > maxAnswerNames || table.name(to) != fmt.Sprint(i) {
			t.Fatalf("%d entries after %d names, the last is %q", len(table), i+1, table.name(to))
		}
	}
}

func TestAnswersByNameDoNotAllocate(t *testing.T) {
	dns := newFakeDNS("one.test", "127.0.0.1", "two.test", "127.0.0.1")
	close(dns.release)
	r := newRemote(t, "127.0.0.1")
	f, _ := openFlow(t, newExits(t, Config{Resolve: dns.lookup}))
	f.link = quietLink{newFakeLink(1)}
	bodies := [][]byte{toNameAnswered("one.test", r.at.Port(), "x"), toNameAnswered("two.test", r.at.Port(), "y"), to(r.at, "z")}
	again := func() {
		bodies[0][0], bodies[1][0] = wire.TypeNameAnswered, wire.TypeNameAnswered
		f.Receive(bodies)
	}
	again()
	for range bodies {
		r.get(t)
	}
	if n := testing.AllocsPerRun(1000, again); n != 0 {
		t.Errorf("%v allocations up", n)
	}
	ms := slices.Repeat([]udpio.Message{{Body: []byte("x"), Addr: r.at}}, 10)
	if n := testing.AllocsPerRun(1000, func() { f.replies(ms) }); n != 0 {
		t.Errorf("%v allocations down", n)
	}
}
