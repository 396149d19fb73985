package user

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/stats"
)

func TestOnlyNameAndSecretTogetherAuthenticate(t *testing.T) {
	var total stats.Total
	var s Set
	s.Replace([]*User{New("alice", "one", &total), New("bob", "two", &total)})
	for _, c := range []struct{ name, secret, want string }{
		{"alice", "one", "alice"},
		{"bob", "two", "bob"},
		{"alice", "two", ""},
		{"alice", "", ""},
		{"carol", "one", ""},
		{"", "", ""},
	} {
		got := ""
		if u := s.Authenticate(c.name, []byte(c.secret)); u != nil {
			got = u.Name
		}
		if got != c.want {
			t.Errorf("%q with %q is %q, want %q", c.name, c.secret, got, c.want)
		}
	}
}

func TestEverybodyIsOneUserWithoutUsers(t *testing.T) {
	var total stats.Total
	s := NewSet(&total)
	s.Anyone().Total.Up(1, 5)
	if got := total.Snapshot().Up.Bytes; got != 5 {
		t.Errorf("%d bytes in all, want 5", got)
	}
	if !s.Open() {
		t.Error("an empty set is not open")
	}
	s.Replace([]*User{New("alice", "one", &total)})
	if s.Open() {
		t.Error("a set with a user is open")
	}
}

func TestUsersWhoStayKeepTheirCounters(t *testing.T) {
	var total stats.Total
	var s Set
	s.Replace([]*User{New("alice", "one", &total), New("bob", "two", &total), New("carol", "three", &total)})
	for _, u := range s.All() {
		u.Total.Up(1, 10)
	}
	c := s.Replace([]*User{New("carol", "three", &total), New("dave", "four", &total), New("bob", "new", &total)})
	names := func(list []*User) (names []string) {
		for _, u := range list {
			names = append(names, u.Name)
		}
		return names
	}
	got := [][]string{names(c.Added), names(c.Removed), names(c.Changed), names(s.All())}
	if diff := cmp.Diff([][]string{{"dave"}, {"alice"}, {"bob"}, {"bob", "carol", "dave"}}, got); diff != "" {
		t.Errorf("added, removed, changed and all (-want +got):\n%s", diff)
	}
	if s.Authenticate("bob", []byte("two")) != nil || s.Authenticate("bob", []byte("new")) != c.Changed[0] {
		t.Error("the new secret does not count")
	}
	for name, want := range map[string]uint64{"bob": 10, "carol": 10, "dave": 0} {
		for _, u := range s.All() {
			if got := u.Total.Snapshot().Up.Bytes; u.Name == name && got != want {
				t.Errorf("%s: %d bytes, want %d", name, got, want)
			}
		}
	}
	if got := total.Snapshot().Up.Bytes; got != 30 {
		t.Errorf("%d bytes in all, want 30", got)
	}
}
