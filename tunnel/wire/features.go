package wire

// Features are optional parts of the protocol, one bit each. Each side announces
// its own at the end of HELLO or WELCOME; a side that sends none has none. The
// messages, fields and values of a feature are sent only to a peer that announced its bit,
// and messages that it adds have even types, so that other peers may skip them.
type Features uint64

// NamedAnswers is the feature that answers carry the name that the client sent to. Upward,
// a datagram's address has the type TypeNameAnswered in place of 3, a name, if the
// client wants that; downward the type is then 3, too.
const NamedAnswers Features = 1 << 0

// TypeNameAnswered is the address type of a name that answers are to carry.
const TypeNameAnswered = 0x83

// OwnFeatures are the features of this program.
const OwnFeatures = NamedAnswers

// Has reports whether all bits of want are set.
func (f Features) Has(want Features) bool { return f&want == want }

// features reads the optional last field of HELLO and WELCOME.
func (f *Fields) features() Features {
	if f.Err != nil || len(f.B) == 0 {
		return 0
	}
	return Features(f.Varint())
}
