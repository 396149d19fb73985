// Package link parses and formats the link that a client needs to reach its
// server,
//
//	wmproxy://NAME:SECRET@HOST:PORT?pin=BASE64URL
//
// and the tokens (NAME:SECRET) in it. It must not know how either side uses
// them, and its errors contain no secret.
package link

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"wmproxy/certs"
)

// Bounds, in bytes.
const (
	maxLink = 4096 // a link as text
	maxHost = 253  // a domain name, RFC 1035 section 2.3.4
)

// MaxLinks bounds the links of one client.
const MaxLinks = 8

const (
	scheme   = "wmproxy://"
	pinParam = "pin"
	// privateParam is the prefix of parameters that Parse skips.
	privateParam = "x-"

	hidden = "***"
)

// Link is the address of a server, its pin, and the token to authenticate with.
type Link struct {
	Name   string // of the user, as in Token
	Secret string `json:"-"` // a struct with a link in it may be logged as JSON
	Host   string // a name or an IP address, IPv6 without brackets
	Port   uint16
	Pin    *certs.Pin // of the server's public key; nil to trust the system's roots
}

// Parse parses a link and ignores white space around it. An error is one sentence
// that tells the user how to correct the link.
func Parse(text string) (Link, error) {
	text = strings.TrimSpace(text)
	if len(text) > maxLink {
		return Link{}, fmt.Errorf("the link is longer than %d characters, so it is not one; copy it again from the server", maxLink)
	}
	if len(text) < len(scheme) || !strings.EqualFold(text[:len(scheme)], scheme) {
		return Link{}, errors.New("the link must start with wmproxy://; copy it again from the server's output or its client.link file")
	}
	rest := text[len(scheme):]
	if strings.Contains(rest, "#") {
		return Link{}, errors.New("the link has a # in it; write that as %23")
	}
	rest, query, _ := strings.Cut(rest, "?")
	rest = strings.TrimSuffix(rest, "/")
	if strings.Contains(rest, "/") {
		return Link{}, errors.New("the link has a / before its end; write one that belongs to the secret as %2F")
	}
	at := strings.LastIndexByte(rest, '@')
	if at < 0 {
		return Link{}, errors.New("the link has no NAME:SECRET@ before the host; copy it again, it starts wmproxy://NAME:SECRET@HOST:PORT")
	}
	var l Link
	if err := l.parseUser(rest[:at]); err != nil {
		return Link{}, err
	}
	if err := l.parseHost(rest[at+1:]); err != nil {
		return Link{}, err
	}
	if err := l.parseQuery(query); err != nil {
		return Link{}, err
	}
	return l, nil
}

// ParseAll parses one or more links with white space between them.
func ParseAll(text string) ([]Link, error) {
	words := strings.Fields(text)
	switch {
	case len(words) == 0:
		return nil, errors.New("there is no link in it; copy it again from the server's output or its client.link file")
	case len(words) > MaxLinks:
		return nil, fmt.Errorf("there are %d links, but a client takes at most %d", len(words), MaxLinks)
	}
	links := make([]Link, len(words))
	for i, word := range words {
		l, err := Parse(word)
		if err != nil {
			return nil, err
		}
		links[i] = l
	}
	return links, nil
}

func (l *Link) parseUser(text string) error {
	name, secret, ok := strings.Cut(text, ":")
	if !ok {
		return errors.New("the link has no secret; it starts wmproxy://NAME:SECRET@HOST:PORT")
	}
	// The errors of package url quote their input, which may be the secret.
	name, errName := url.PathUnescape(name)
	secret, errSecret := url.PathUnescape(secret)
	if errName != nil || errSecret != nil {
		return errors.New("the link has a % in its name or secret that starts no escape; write % as %25")
	}
	t, err := newToken(name, secret)
	if err != nil {
		return fmt.Errorf("the link is not usable: %w", err)
	}
	l.Name, l.Secret = t.Name, t.Secret
	return nil
}

func (l *Link) parseHost(text string) error {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return errors.New("the link has no HOST:PORT after the @; an IPv6 address there stands in brackets")
	}
	if host, err = url.PathUnescape(host); err != nil {
		return errors.New("the link has a % in its host that starts no escape; write the zone of an IPv6 address as %25ZONE")
	}
	if err := CheckHost(host); err != nil {
		return fmt.Errorf("the link is not usable: %w", err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return errors.New("the link's port must be a number from 1 to 65535")
	}
	l.Host, l.Port = host, uint16(n)
	return nil
}

func (l *Link) parseQuery(query string) error {
	for param := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(param, "=")
		switch {
		case param == "" || strings.HasPrefix(key, privateParam):
		case key == pinParam && l.Pin != nil:
			return errors.New("the link has two pins; keep the one of the server's output")
		case key == pinParam:
			pin, err := certs.ParsePin(value)
			if err != nil {
				return errors.New("the link's pin is damaged (it is 43 letters, digits, - and _); copy the link again from the server")
			}
			l.Pin = &pin
		default:
			// To connect without it could be less safe.
			return errors.New("the link has a parameter that this version does not know; update wmproxy, or remove all but pin=")
		}
	}
	return nil
}

// CheckHost returns an error unless host can stand in a link: an IP address (IPv6
// without brackets, but with any zone) or a domain name of at most maxHost bytes.
func CheckHost(host string) error {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if host == "" || len(host) > maxHost {
		return fmt.Errorf("the host must be an IP address or a name of 1 to %d characters", maxHost)
	}
	for _, c := range []byte(host) {
		if !isAlphanumeric(c) && c != '-' && c != '.' && c != '_' {
			return errors.New("the host must be an IP address or a name of letters, digits, dots and hyphens")
		}
	}
	return nil
}

// Address returns HOST:PORT for dialing.
func (l Link) Address() string {
	return net.JoinHostPort(l.Host, strconv.Itoa(int(l.Port)))
}

// Text returns the link as Parse takes it, secret included.
func (l Link) Text() string { return l.text(escape(l.Secret)) }

// UnmarshalText is Parse.
func (l *Link) UnmarshalText(text []byte) (err error) {
	*l, err = Parse(string(text))
	return err
}

// String returns the link with its secret hidden, so that no way of printing a structure
// that holds one shows it.
func (l Link) String() string { return l.text(hidden) }

// GoString is String, for %#v.
func (l Link) GoString() string { return l.String() }

// LogValue returns the link with its secret hidden.
func (l Link) LogValue() slog.Value { return slog.StringValue(l.String()) }

func (l Link) text(secret string) string {
	host := strings.ReplaceAll(l.Host, "%", "%25") // the zone of an IPv6 address, RFC 6874
	text := scheme + l.Name + ":" + secret + "@" + net.JoinHostPort(host, strconv.Itoa(int(l.Port)))
	if l.Pin != nil {
		text += "?" + pinParam + "=" + l.Pin.String()
	}
	return text
}

// escape percent-encodes all but the unreserved characters of RFC 3986 section
// 2.3, so that shells and chat programs leave a link intact.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if isAlphanumeric(c) || c == '-' || c == '.' || c == '_' || c == '~' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
