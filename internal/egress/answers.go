package egress

import (
	"encoding/binary"
	"net/netip"

	"wmproxy/socks"
)

// maxAnswerNames bounds the entries of an answerTable: two for each of a flow's names, and as
// many for other ports that the client has sent to.
const maxAnswerNames = 4 * maxFlowNames

// answerTable has the names that answers carry as their source instead of the address, because
// the client has asked for that. An address with port 0 stands for all its ports to which the
// client has not sent. The name "" stands for the address itself.
type answerTable map[netip.AddrPort]string

// asked records that the client has sent to an address by this name.
func (t answerTable) asked(to netip.AddrPort, name string) {
	t.set(to, name)
	t.set(netip.AddrPortFrom(to.Addr(), 0), name)
}

// addressed records that the client has sent to an address and not a name.
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

// makeRoom drops an entry of another address than ip, or all if there is none: a client that
// sends to so many ports of one address will name it again.
func (t answerTable) makeRoom(ip netip.Addr) {
	for to := range t {
		if to.Addr() != ip {
			delete(t, to)
			return
		}
	}
	clear(t)
}

// name returns the name for an answer from an address, or "" for the address itself.
func (t answerTable) name(from netip.AddrPort) string {
	if name, ok := t[from]; ok {
		return name
	}
	return t[netip.AddrPortFrom(from.Addr(), 0)]
}

// noteName records that the client has sent to an address by the name n, possibly asking for
// it in answers. The caller holds f.mu.
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

// noteAddress records that the client has sent to an address and not a name.
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
