package egress

import (
	"encoding/binary"
	"net/netip"

	"wmproxy/socks"
)

// maxAnswerNames bounds the entries of an answerTable: two for each of a flow's names, and
// as many ports again that the client addressed otherwise.
const maxAnswerNames = 4 * maxFlowNames

// An answerTable holds the names that answers to a flow carry as their source in place of
// the address, because the client has asked for that. An address with port 0 stands for its
// ports that the client has not sent to. No name ("") is the address itself.
type answerTable map[netip.AddrPort]string

// asked notes that the client has sent to an address by this name.
func (t answerTable) asked(to netip.AddrPort, name string) {
	t.set(to, name)
	t.set(netip.AddrPortFrom(to.Addr(), 0), name)
}

// addressed notes that the client has sent to an address, not a name.
func (t answerTable) addressed(to netip.AddrPort) {
	if _, ok := t[netip.AddrPortFrom(to.Addr(), 0)]; ok {
		t.set(to, "")
	}
}

func (t answerTable) set(to netip.AddrPort, name string) {
	old, ok := t[to]
	if ok && old == name {
		return
	}
	if !ok && len(t) >= maxAnswerNames {
		t.makeRoom(to.Addr())
	}
	t[to] = name
}

// makeRoom drops an entry of another address than ip. If there is none it drops all: a
// client that sends to so many ports of one address will name it again.
func (t answerTable) makeRoom(ip netip.Addr) {
	for to := range t {
		if to.Addr() != ip {
			delete(t, to)
			return
		}
	}
	clear(t)
}

// name returns the name that an answer from an address carries, "" for the address itself.
func (t answerTable) name(from netip.AddrPort) string {
	if name, ok := t[from]; ok {
		return name
	}
	return t[netip.AddrPortFrom(from.Addr(), 0)]
}

// noteName notes how the client has sent to an address that it knows as n. The caller
// has f.mu.
func (f *flow) noteName(to netip.AddrPort, n *destName) {
	switch {
	case n.asked && f.answers == nil:
		f.answers = make(answerTable)
		f.answersByName.Store(true)
		fallthrough
	case n.asked:
		f.answers.asked(to, n.name)
	case f.answers != nil:
		f.answers.addressed(to)
	}
}

// noteAddress notes that the client has sent to an address, not a name.
func (f *flow) noteAddress(to netip.AddrPort) {
	if !f.answersByName.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers.addressed(to)
}

// appendSource appends the head of an answer from an address:
//
//	+------+--------------+------+        +------+-----+------+------+
//	| ATYP | address 4|16 | PORT |   or   | 0x03 | LEN | name | PORT |
//	+------+--------------+------+        +------+-----+------+------+
func (f *flow) appendSource(b []byte, from netip.AddrPort) []byte {
	if f.answersByName.Load() {
		f.mu.Lock()
		name := f.answers.name(from)
		f.mu.Unlock()
		if name != "" {
			b = append(append(b, socks.TypeName, byte(len(name))), name...)
			return binary.BigEndian.AppendUint16(b, from.Port())
		}
	}
	return socks.AppendAddrPort(b, from)
}
