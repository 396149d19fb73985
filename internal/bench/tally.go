package bench

// seenWindow is the number of sequence numbers of an association that are remembered to
// detect duplicates, a power of two: two seconds at 32,768 datagrams/s.
const seenWindow = 1 << 16

// tally classifies the sequence numbers of an association, which begin with 1. The zero
// value is ready to use. It grows with the numbers up to seenWindow bits.
type tally struct {
	highest uint64   // that arrived
	seen    []uint64 // bit sequence%size for those after highest-size
}

// arrival is the class of a datagram.
type arrival uint8

const (
	inOrder   arrival = iota
	reordered         // a later one arrived first
	duplicate         // or too old to tell
)

func (t *tally) size() uint64 { return uint64(len(t.seen)) * 64 }

// arrived adds a sequence number and returns its class.
func (t *tally) arrived(sequence uint64) arrival {
	if sequence > t.highest {
		t.advance(sequence)
		t.mark(sequence)
		return inOrder
	}
	if sequence+t.size() <= t.highest || t.marked(sequence) {
		return duplicate
	}
	t.mark(sequence)
	return reordered
}

// advance makes sequence the highest and moves the window.
func (t *tally) advance(sequence uint64) {
	for t.size() < seenWindow && sequence >= t.size() {
		t.grow()
	}
	first := t.highest + 1
	if sequence-t.highest > t.size() {
		first = sequence - t.size() + 1
	}
	for s := first; s <= sequence; s++ {
		t.seen[s%t.size()/64] &^= 1 << (s % 64)
	}
	t.highest = sequence
}

// grow doubles the window. Until it has its full size no number has left it, so that the
// bits keep their places.
func (t *tally) grow() {
	words := max(2*len(t.seen), 4)
	t.seen = append(t.seen, make([]uint64, words-len(t.seen))...)
}

func (t *tally) mark(s uint64)        { t.seen[s%t.size()/64] |= 1 << (s % 64) }
func (t *tally) marked(s uint64) bool { return t.seen[s%t.size()/64]&(1<<(s%64)) != 0 }
