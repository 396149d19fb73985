package tunnel

// Features are optional parts of the protocol, one bit each. Each side announces
// its own at the end of HELLO or WELCOME; a side that sends none has none. What
// belongs to a feature is sent only to a peer that announced its bit, and messages
// that a feature adds have even types, so that others may skip them.
type Features uint64

// ownFeatures are those of this program.
const ownFeatures Features = 0

// Has reports whether all bits of want are set.
func (f Features) Has(want Features) bool { return f&want == want }

// features reads the optional last field of HELLO and WELCOME.
func (f *fields) features() Features {
	if f.err != nil || len(f.b) == 0 {
		return 0
	}
	return Features(f.varint())
}
