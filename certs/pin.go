package certs

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
)

// Pin names a public key: the SHA-256 of its SubjectPublicKeyInfo (RFC 5280
// section 4.1). A new certificate for the same key keeps the pin.
type Pin [sha256.Size]byte

// pinText is base64url without padding (RFC 4648 section 5): 43 characters.
// Strict, so that one pin has one spelling.
var pinText = base64.RawURLEncoding.Strict()

// ErrPin says that a text is not a pin.
var ErrPin = errors.New("a pin is 43 characters of base64url")

// PinOf returns the pin of the certificate's public key.
func PinOf(cert *x509.Certificate) Pin {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// ParsePin reads what String writes. Its error is ErrPin.
func ParsePin(text string) (Pin, error) {
	var p Pin
	if len(text) != pinText.EncodedLen(len(p)) {
		return Pin{}, ErrPin
	}
	// The decoder skips line breaks, and then there are fewer bytes.
	if n, err := pinText.Decode(p[:], []byte(text)); err != nil || n != len(p) {
		return Pin{}, ErrPin
	}
	return p, nil
}

// String returns the pin in base64url.
func (p Pin) String() string { return pinText.EncodeToString(p[:]) }

// MarshalText returns the pin in base64url.
func (p Pin) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePin.
func (p *Pin) UnmarshalText(text []byte) error {
	parsed, err := ParsePin(string(text))
	if err != nil {
		return err
	}
	*p = parsed
	return nil
}

// Equal compares in constant time.
func (p Pin) Equal(q Pin) bool { return subtle.ConstantTimeCompare(p[:], q[:]) == 1 }

// PinError is the failure of a TLS handshake whose server has another key than
// the one that was pinned.
type PinError struct {
	Want, Got Pin
}

func (e *PinError) Error() string {
	return fmt.Sprintf("the server's key is %s and not the pinned %s", e.Got, e.Want)
}
