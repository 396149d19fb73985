package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"wmproxy/internal/link"
	"wmproxy/internal/state"
	"wmproxy/tunnel"
)

// defaultUser is the name of the random token.
const defaultUser = "wmproxy"

// tokens are the users that may come in, by name, as hashes of their secrets.
type tokens struct {
	first  link.Token // stands in the link
	hashes map[string][sha256.Size]byte
}

// loadTokens returns the given tokens or, where there are none, the random one
// in the state directory, which it makes on the first start.
func loadTokens(given []link.Token, dir *state.Dir) (*tokens, error) {
	if len(given) == 0 {
		t, err := randomToken(dir)
		if err != nil {
			return nil, err
		}
		given = []link.Token{t}
	}
	if err := link.CheckTokens(given); err != nil {
		return nil, err
	}
	ts := &tokens{first: given[0], hashes: make(map[string][sha256.Size]byte)}
	for _, t := range given {
		ts.hashes[t.Name] = sha256.Sum256([]byte(t.Secret))
	}
	return ts, nil
}

func randomToken(dir *state.Dir) (link.Token, error) {
	b, err := dir.ReadFile(fileToken)
	if errors.Is(err, fs.ErrNotExist) {
		t, err := link.NewToken(defaultUser)
		if err != nil {
			return t, err
		}
		return t, dir.WriteFile(fileToken, []byte(t.Name+":"+t.Secret+"\n"))
	}
	if err != nil {
		return link.Token{}, fmt.Errorf("%w; restore the file or its permissions", err)
	}
	t, err := link.ParseToken(strings.TrimSpace(string(b)))
	if err != nil {
		return t, fmt.Errorf("%s holds no token (%w); delete it to make a new one", dir.Join(fileToken), err)
	}
	return t, nil
}

// tokenChange is the difference between the users of two sets of tokens.
type tokenChange struct {
	added, removed, changed []string // names, sorted; changed ones have another secret
}

// changeTo compares ts with its successor.
func (ts *tokens) changeTo(next *tokens) (c tokenChange) {
	for name, hash := range next.hashes {
		old, known := ts.hashes[name]
		switch {
		case !known:
			c.added = append(c.added, name)
		case old != hash:
			c.changed = append(c.changed, name)
		}
	}
	for name := range ts.hashes {
		if _, stays := next.hashes[name]; !stays {
			c.removed = append(c.removed, name)
		}
	}
	slices.Sort(c.added)
	slices.Sort(c.removed)
	slices.Sort(c.changed)
	return c
}

// authenticate compares in constant time, whether the user exists or not.
func (ts *tokens) authenticate(c tunnel.Credentials) bool {
	want, known := ts.hashes[c.User]
	got := sha256.Sum256([]byte(c.Token))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1 && known
}
