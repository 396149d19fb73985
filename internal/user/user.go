// Package user is the users of a server or an entrance: their secrets, and what was
// counted for them.
package user

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"maps"
	"slices"
	"sync"

	"wmproxy/internal/stats"
)

// User is one who authenticated, or all if nobody is asked to. Its pointer stands for
// it: a user who was removed and is added again is another. The zero value has no name.
type User struct {
	Name  string
	Total stats.Total // of all sessions and associations, also of those that have ended

	secret [sha256.Size]byte // hashed; guarded by Set.mu
}

// New returns a user whose counts are counted in total too.
func New(name, secret string, total *stats.Total) *User {
	u := &User{Name: name, secret: sha256.Sum256([]byte(secret))}
	u.Total.In(total)
	return u
}

// Set is the users that may come in. Without any, as in the zero value, everybody may,
// and all are one user.
type Set struct {
	mu     sync.RWMutex
	byName map[string]*User
	anyone User
}

// NewSet returns a set of users, without any at first, whose counts are counted in total too.
func NewSet(total *stats.Total) *Set {
	s := new(Set)
	s.anyone.Total.In(total)
	return s
}

// Open reports whether nobody has to authenticate. A nil set is open.
func (s *Set) Open() bool {
	if s == nil {
		return true
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.byName) == 0
}

// Anyone returns the user that all are who do not authenticate.
func (s *Set) Anyone() *User {
	if s == nil {
		return &open.anyone
	}
	return &s.anyone
}

// open is what a nil set stands for.
var open Set

// Authenticate returns the user of this name and secret, nil if there is none. It takes
// as long for an unknown name as for a wrong secret, and keeps neither.
func (s *Set) Authenticate(name string, secret []byte) *User {
	got := sha256.Sum256(secret)
	s.mu.RLock()
	defer s.mu.RUnlock()
	u, known := s.byName[name]
	if !known {
		u = &User{}
	}
	if subtle.ConstantTimeCompare(u.secret[:], got[:]) != 1 || !known {
		return nil
	}
	return u
}

// All returns the users, sorted by name.
func (s *Set) All() []*User {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.byName), byName)
}

func byName(a, b *User) int { return cmp.Compare(a.Name, b.Name) }

// Change is how the users differ from those before, each list sorted by name.
type Change struct {
	Added, Removed []*User
	Changed        []*User // with another secret
}

// Replace makes next, whose names differ, the users. Those who were there already stay the
// same, with their counters.
func (s *Set) Replace(next []*User) (c Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	users := make(map[string]*User, len(next))
	for _, u := range next {
		switch old := s.byName[u.Name]; {
		case old == nil:
			c.Added = append(c.Added, u)
		case old.secret != u.secret:
			old.secret = u.secret
			c.Changed = append(c.Changed, old)
			u = old
		default:
			u = old
		}
		users[u.Name] = u
	}
	for name, u := range s.byName {
		if users[name] == nil {
			c.Removed = append(c.Removed, u)
		}
	}
	s.byName = users
	for _, list := range [][]*User{c.Added, c.Removed, c.Changed} {
		slices.SortFunc(list, byName)
	}
	return c
}
