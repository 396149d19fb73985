package direct

import (
	"crypto/rand"
	"crypto/subtle"
)

const (
	// IDLen is the length in bytes of a connection ID. QUIC connections of this program have the
	// same, so that quic-go finds the ID of a packet that the table does not know.
	IDLen = 17

	// TokenLen is the length in bytes of a stateless reset token (RFC 9000 section 10.3).
	TokenLen = 16

	// minReset is the size in bytes of the smallest stateless reset.
	minReset = 1 + 4 + TokenLen
)

// ConnectionID names the receiver's keys in a direct packet.
type ConnectionID [IDLen]byte

// newConnectionID returns a random one.
func newConnectionID() (id ConnectionID) {
	rand.Read(id[:])
	return id
}

// IsStatelessReset reports whether a datagram that belongs to no connection is the stateless reset
// with that token, in constant time.
func IsStatelessReset(datagram []byte, token [TokenLen]byte) bool {
	if len(datagram) < minReset || datagram[0]&longHeader != 0 {
		return false
	}
	return subtle.ConstantTimeCompare(datagram[len(datagram)-TokenLen:], token[:]) == 1
}
