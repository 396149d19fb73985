package direct

const (
	windowWords = 128 // a power of two
	wordBits    = 64

	// windowSize is how many numbers below the highest are told apart. The word of the highest may be new, so
	// that its other bits are not those of old numbers.
	windowSize = (windowWords - 1) * wordBits
)

// window remembers the numbers that were opened, in a ring of bits that never shifts (RFC 6479).
type window struct {
	end  uint64 // the highest number plus one
	bits [windowWords]uint64
}

// has reports whether number was added, or is too old to tell.
func (w *window) has(number uint64) bool {
	if number >= w.end {
		return false
	}
	if w.end-number > windowSize {
		return true
	}
	return w.bits[number/wordBits%windowWords]>>(number%wordBits)&1 != 0
}

// add adds a number that the window does not have.
func (w *window) add(number uint64) {
	word := number / wordBits
	if number >= w.end {
		// Clear the words between the old highest and the new one, each once.
		for clear := min(word-w.lastWord(), windowWords); clear > 0; clear-- {
			w.bits[(word-clear+1)%windowWords] = 0
		}
		w.end = number + 1
	}
	w.bits[word%windowWords] |= 1 << (number % wordBits)
}

// lastWord returns the index of the word with the highest number.
func (w *window) lastWord() uint64 {
	if w.end == 0 {
		return 0
	}
	return (w.end - 1) / wordBits
}
