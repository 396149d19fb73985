package egress

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// conversation is a flow that sends to a name, under a clock of its own.
type conversation struct {
	t    *testing.T
	dns  *fakeDNS
	flow *flow
	link *fakeLink
	now  atomic.Int64 // ns since the epoch
}

const peerName = "peer.example"

func converse(t *testing.T, addrs ...string) *conversation {
	t.Helper()
	c := &conversation{t: t, dns: newFakeDNS()}
	c.listed(addrs...)
	close(c.dns.release)
	e := newExits(t, Config{Resolve: c.dns.lookup})
	e.resolver.routable = everyRoute
	e.now = func() time.Time { return time.Unix(0, c.now.Load()) }
	c.flow, c.link = openFlow(t, e)
	send(c.flow, toName(peerName, 9, "x"))
	eventually(t, "the name is known", func() bool { return c.uses() != "invalid IP" })
	return c
}

// listed makes these the addresses of the name.
func (c *conversation) listed(ips ...string) {
	c.dns.mu.Lock()
	c.dns.table[peerName] = addrs(ips...)
	c.dns.mu.Unlock()
}

// say sends a datagram each second for d.
func (c *conversation) say(d time.Duration) {
	for ; d > 0; d -= time.Second {
		c.now.Add(int64(time.Second))
		send(c.flow, toName(peerName, 9, "x"))
	}
}

// uses returns the address that the flow uses for the name.
func (c *conversation) uses() string {
	c.flow.mu.Lock()
	defer c.flow.mu.Unlock()
	return c.flow.names.byName[peerName].ip.String()
}

func (c *conversation) wants(when, ip string) {
	c.t.Helper()
	if got := c.uses(); got != ip {
		c.t.Fatalf("%s: the flow uses %s, want %s", when, got, ip)
	}
}

// answer sends a datagram back from an address.
func (c *conversation) answer(ip string) {
	c.t.Helper()
	port := c.flow.sock.Load().LocalAddr().Port()
	newRemote(c.t, ip).put(c.t, "x", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
	c.link.next(c.t)
}

// asked waits until the name has been looked up this number of times and the answers have
// arrived, and makes the resolver forget them.
func (c *conversation) asked(times int) {
	c.t.Helper()
	eventually(c.t, "the name is asked for", func() bool {
		c.dns.mu.Lock()
		n := c.dns.asked[peerName]
		c.dns.mu.Unlock()
		c.flow.mu.Lock()
		defer c.flow.mu.Unlock()
		return n == times && !c.flow.names.byName[peerName].silence.asked
	})
	c.flow.user.exits.resolver.sweep(time.Now().Add(time.Hour))
}

func TestSilentAddressIsLookedUpAgain(t *testing.T) {
	c := converse(t, "127.0.0.1")
	c.asked(1)
	c.answer("127.0.0.1")
	c.listed("127.0.0.2")
	c.say(renewAfter)
	c.asked(1)
	c.wants("before 30 s of sending", "127.0.0.1")
	c.say(time.Second)
	c.asked(2)
	c.wants("after 30 s of sending", "127.0.0.2")
	c.say(renewAfter + time.Second)
	c.asked(3)
	c.wants("with nothing else to try", "127.0.0.2")
}

func TestAnsweringAddressStays(t *testing.T) {
	c := converse(t, "127.0.0.1")
	c.listed("127.0.0.2")
	c.asked(1)
	for range 10 {
		c.say(renewAfter - time.Second)
		c.answer("127.0.0.1")
	}
	for range 10 { // a pause is not silence
		c.say(time.Second)
		c.now.Add(int64(time.Hour))
		c.say(time.Second)
		c.answer("127.0.0.1")
	}
	c.asked(1)
	c.wants("while it answers", "127.0.0.1")
}

func TestNextAddressIsTriedAfterSilence(t *testing.T) {
	c := converse(t, "127.0.0.9", "127.0.0.2", "127.0.0.3")
	c.asked(1)
	c.say(tryNextAfter - time.Second)
	c.wants("at first", "127.0.0.9")
	c.say(time.Second)
	c.wants("after a while", "127.0.0.2")
	c.answer("127.0.0.2")
	c.say(renewAfter)
	c.wants("once it has answered", "127.0.0.2")
	c.answer("127.0.0.2")
	c.say(renewAfter + time.Second)
	c.asked(2)
	c.wants("when it has fallen silent", "127.0.0.3")
	c.say(tryNextAfter + time.Second)
	c.wants("when the next is silent too", "127.0.0.9")
	c.answer("127.0.0.3")
	c.wants("when one answers late", "127.0.0.3")
}

func TestOneWayConversationKeepsAddress(t *testing.T) {
	c := converse(t, "127.0.0.1", "127.0.0.2")
	c.asked(1)
	c.say(tryNextAfter)
	c.wants("after a while", "127.0.0.2")
	c.say(tryNextAfter)
	c.wants("after a round", "127.0.0.1")
	for asked := range 3 {
		c.say(renewAfter)
		c.asked(2 + asked)
		c.wants("when none has ever answered", "127.0.0.1")
	}
	c.listed("127.0.0.1", "127.0.0.2", "127.0.0.3")
	c.say(renewAfter)
	c.asked(5)
	c.wants("when there is one more to try", "127.0.0.2")
}

func TestRefusedAddressIsNotUsed(t *testing.T) {
	c := converse(t, "127.0.0.1")
	c.asked(1)
	c.listed("10.0.0.1")
	c.say(renewAfter)
	c.asked(2)
	c.wants("when the policy refuses the new address", "127.0.0.1")
}

func TestVanishedNameKeepsItsAddress(t *testing.T) {
	c := converse(t, "127.0.0.1")
	c.asked(1)
	c.dns.mu.Lock()
	delete(c.dns.table, peerName)
	c.dns.mu.Unlock()
	c.say(renewAfter)
	eventually(t, "the name is asked for", func() bool {
		c.dns.mu.Lock()
		defer c.dns.mu.Unlock()
		return c.dns.asked[peerName] >= 2
	})
	c.wants("when it no longer resolves", "127.0.0.1")
}
