package link

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of a token and of a list of them.
const (
	maxName   = 64  // bytes
	maxSecret = 256 // bytes
	MaxTokens = 4096
)

// secretBytes is the length in bytes of a secret made by NewToken.
const secretBytes = 32

// Token is a user's name and the secret that proves it.
type Token struct {
	Name   string // 1 to maxName of letters, digits, dot, hyphen and underscore
	Secret string `json:"-"` // 1 to maxSecret bytes of UTF-8, no control characters or spaces
}

// NewToken returns a token for name with a random secret of 256 bits, or an error
// if the name is not valid.
func NewToken(name string) (Token, error) {
	secret := make([]byte, secretBytes)
	_, _ = rand.Read(secret) // never fails (documented)
	return newToken(name, base64.RawURLEncoding.EncodeToString(secret))
}

// ParseToken parses NAME:SECRET. The secret may contain colons and commas. An
// error is one sentence that tells the user how to correct the token.
func ParseToken(text string) (Token, error) {
	name, secret, ok := strings.Cut(text, ":")
	if !ok {
		return Token{}, errors.New("a token must be written NAME:SECRET")
	}
	return newToken(name, secret)
}

// ParseTokens parses a file of tokens, one on each line, and skips empty lines and
// lines that start with #. A name may occur only once.
func ParseTokens(text string) ([]Token, error) {
	var tokens []Token
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		t, err := ParseToken(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if tokens = append(tokens, t); len(tokens) > MaxTokens {
			return nil, fmt.Errorf("there are more than %d tokens; remove some", MaxTokens)
		}
	}
	return tokens, CheckTokens(tokens)
}

// CheckTokens returns an error if two tokens have the same name.
func CheckTokens(tokens []Token) error {
	seen := make(map[string]bool, len(tokens))
	for _, t := range tokens {
		if seen[t.Name] {
			return fmt.Errorf("two tokens have the name %s; give each user one", t.Name)
		}
		seen[t.Name] = true
	}
	return nil
}

func newToken(name, secret string) (Token, error) {
	if err := checkName(name); err != nil {
		return Token{}, err
	}
	if secret == "" || len(secret) > maxSecret {
		return Token{}, fmt.Errorf("the secret must have 1 to %d characters", maxSecret)
	}
	if !utf8.ValidString(secret) || strings.ContainsFunc(secret, unprintable) {
		return Token{}, errors.New("the secret must not have spaces or control characters in it")
	}
	return Token{Name: name, Secret: secret}, nil
}

func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("the name must have 1 to %d characters", maxName)
	}
	for _, c := range []byte(name) {
		if !isAlphanumeric(c) && c != '-' && c != '.' && c != '_' {
			return errors.New("the name may have letters, digits, dots, hyphens and underscores only")
		}
	}
	return nil
}

func unprintable(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }

// String returns the token with its secret hidden, so that a struct with a token
// in it can be printed. For the secret use Name + ":" + Secret.
func (t Token) String() string { return t.Name + ":" + hidden }

// GoString returns String for %#v.
func (t Token) GoString() string { return t.String() }

// LogValue returns the token with its secret hidden.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }
