package ingress

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/entrance"
	"wmproxy/internal/share"
	"wmproxy/internal/user"
)

func TestUsersAreNamesOrAddresses(t *testing.T) {
	for _, test := range []struct{ user, client, want string }{
		{"ann", "192.0.2.1", "ann"},
		{"", "192.0.2.1", "192.0.2.1"},
		{"", "::ffff:192.0.2.1", "192.0.2.1"},
		{"", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
		{"", "2001:db8:1:2::9", "2001:db8:1:2::/64"},
		{"", "fe80::1%eth0", "fe80::/64"},
	} {
		if got := userOf(entrance.Origin{User: &user.User{Name: test.user}, Client: netip.AddrPortFrom(netip.MustParseAddr(test.client), 1)}); got != test.want {
			t.Errorf("%q from %s is %q, want %q", test.user, test.client, got, test.want)
		}
	}
}

func TestWhatIsEndedIsThatOfWhoHasMost(t *testing.T) {
	room := &Room{Pool: share.New(9, 9), Beside: 1, Streams: share.New(2, 2)}
	var ended []string
	enter := func(user, what string) error {
		u := new(use)
		end := func() {
			ended = append(ended, what)
			u.leave()
		}
		if what[0] == 'a' {
			return room.enter(u, user, end)
		}
		return room.enterStream(t.Context(), u, user, end)
	}
	for _, step := range []struct {
		user, what string
		err        error
		ended      []string // by then
	}{
		{"ann", "association 1", nil, nil},
		{"ann", "association 2", nil, nil},
		{"ann", "connect 3", nil, nil},           // 8 of 9 descriptors
		{"ann", "connect 4", share.ErrFull, nil}, // 10
		{"bob", "connect 5", nil, []string{"association 1"}},
		{"bob", "connect 6", errNoStreams, []string{"association 1"}},
		{"bob", "association 7", share.ErrFull, []string{"association 1"}},
	} {
		if err := enter(step.user, step.what); !errors.Is(err, step.err) {
			t.Errorf("%s's %s: %v, want %v", step.user, step.what, err, step.err)
		}
		if diff := cmp.Diff(step.ended, ended); diff != "" {
			t.Errorf("after %s's %s: %s", step.user, step.what, diff)
		}
	}
}
