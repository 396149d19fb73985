package certs

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
)

// Pin identifies a public key: the SHA-256 of its SubjectPublicKeyInfo (RFC 5280
// section 4.1). A new certificate for the same key has the same pin.
type Pin [sha256.Size]byte

// pinText is base64url without padding (RFC 4648 section 5), 43 characters. It is
// strict, so that a pin has one spelling.
var pinText = base64.RawURLEncoding.Strict()

// errPin is returned if a text is not a pin.
var errPin = errors.New("a pin is 43 characters of base64url")

// PinOf returns the pin of the certificate's public key.
func PinOf(cert *x509.Certificate) Pin {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// ParsePin parses a pin as String returns it.
func ParsePin(text string) (Pin, error) {
	var p Pin
	if len(text) != pinText.EncodedLen(len(p)) {
		return Pin{}, errPin
	}
	// The decoder skips line breaks and then returns fewer bytes.
	if n, err := pinText.Decode(p[:], []byte(text)); err != nil || n != len(p) {
		return Pin{}, errPin
	}
	return p, nil
}

// String returns the pin in base64url.
func (p Pin) String() string { return pinText.EncodeToString(p[:]) }

// PinError is the error of a TLS handshake with a server that has another key than
// the pinned one.
type PinError struct {
	Want, Got Pin
}

func (e *PinError) Error() string {
	return fmt.Sprintf("the server's key is %s and not the pinned %s", e.Got, e.Want)
}
