package share

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// holder is a Holder that records the leases that it gave up.
type holder struct {
	name  string
	last  uint32
	lease *Lease
	slow  bool // GiveUp does not call Release
	lost  *[]string
}

func (h *holder) LastUsed() uint32 { return h.last }

func (h *holder) GiveUp(l *Lease) {
	*h.lost = append(*h.lost, h.name)
	if !h.slow {
		l.Release()
	}
}

var classNames = map[string]Class{"flow": Flow, "stream": Stream, "carrier": Carrier}

// fixture is a pool and its holders by name, such as "ann flow0".
type fixture struct {
	t       *testing.T
	pool    *Pool
	holders map[string]*holder
	lost    []string
}

func newFixture(t *testing.T, limit, slack int) *fixture {
	return &fixture{t: t, pool: New(limit, slack), holders: make(map[string]*holder)}
}

// take takes n descriptors of the class for the user's new holder, with this time of last use.
func (h *fixture) take(user, class, number string, n int, last uint32) error {
	h.t.Helper()
	x := &holder{name: user + " " + class + number, last: last, lost: &h.lost}
	l, err := h.pool.Take(user, classNames[class], n, x)
	if (l == nil) != (err != nil) {
		h.t.Fatalf("lease %v, error %v", l, err)
	}
	if err == nil {
		x.lease = l
		h.holders[x.name] = x
	}
	return err
}

func TestFullPoolTakesFromUserWithMost(t *testing.T) {
	const now = 100
	type has struct {
		what string // user and class
		n    int    // descriptors of each
		last []uint32
	}
	for _, test := range []struct {
		name  string
		limit int
		has   []has
		want  string // user and class
		n     int
		err   error
		lost  []string
	}{
		{"a free one", 3, []has{{"ann flow", 1, []uint32{1, 2}}}, "bob flow", 1, nil, nil},
		{"the least recently used", 3, []has{{"ann flow", 1, []uint32{9, 7, 8}}}, "bob flow", 1, nil, []string{"ann flow1"}},
		{"of the user with most", 4, []has{{"ann flow", 1, []uint32{1}}, {"eve flow", 1, []uint32{50, 51, 52}}}, "bob flow", 1, nil, []string{"eve flow0"}},
		{"none of a user who would have fewer", 4, []has{{"ann flow", 1, []uint32{1, 2}}, {"bob flow", 1, []uint32{now, now}}}, "bob flow", 1, ErrFull, nil},
		{"none of a user with one more", 3, []has{{"ann flow", 1, []uint32{1, 2}}, {"bob flow", 1, []uint32{now}}}, "bob flow", 1, ErrFull, nil},
		{"one of a user with two more", 4, []has{{"ann flow", 1, []uint32{1, 2, 3}}, {"bob flow", 1, []uint32{now}}}, "bob flow", 1, nil, []string{"ann flow0"}},
		{"idle flows before idle streams", 4, []has{{"ann stream", 1, []uint32{1, 2}}, {"ann flow", 1, []uint32{50, 51}}}, "bob flow", 1, nil, []string{"ann flow0"}},
		{"idle streams before idle carriers", 4, []has{{"ann carrier", 1, []uint32{1, 2}}, {"ann stream", 1, []uint32{50, 51}}}, "bob flow", 1, nil, []string{"ann stream0"}},
		{"idle carriers before flows in use", 4, []has{{"ann carrier", 1, []uint32{90, 91}}, {"ann flow", 1, []uint32{98, 99}}}, "bob flow", 1, nil, []string{"ann carrier0"}},
		{"flows in use before streams in use", 4, []has{{"ann stream", 1, []uint32{98, 98}}, {"ann flow", 1, []uint32{100, 99}}}, "bob flow", 1, nil, []string{"ann flow1"}},
		{"an idle flow of the same user for a stream", 2, []has{{"ann flow", 1, []uint32{70, 60}}}, "ann stream", 1, nil, []string{"ann flow1"}},
		{"no recently used one of the same user", 2, []has{{"ann flow", 1, []uint32{72, 71}}}, "ann stream", 1, ErrFull, nil},
		{"no idle stream of the same user for a flow", 2, []has{{"ann stream", 1, []uint32{1, 1}}}, "ann flow", 1, ErrFull, nil},
		{"any flow of the same user for a carrier", 2, []has{{"ann flow", 1, []uint32{100, 99}}}, "ann carrier", 1, nil, []string{"ann flow1"}},
		{"no stream in use of the same user for a carrier", 2, []has{{"ann stream", 1, []uint32{100, 99}}}, "ann carrier", 1, ErrFull, nil},
		{"as many as needed", 6, []has{{"ann flow", 1, []uint32{1, 2, 3, 4, 5, 6}}}, "bob flow", 3, nil, []string{"ann flow0", "ann flow1", "ann flow2"}},
		{"a lease of three for one", 6, []has{{"ann flow", 3, []uint32{2, 1}}}, "bob stream", 1, nil, []string{"ann flow1"}},
		{"none if they are not enough", 6, []has{{"ann flow", 1, []uint32{1, 2, 3}}, {"eve flow", 1, []uint32{4, 5, 6}}}, "bob flow", 3, ErrFull, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFixture(t, test.limit, test.limit)
			h.pool.seconds.Store(now)
			for _, has := range test.has {
				user, class, _ := strings.Cut(has.what, " ")
				for i, last := range has.last {
					if err := h.take(user, class, fmt.Sprint(i), has.n, last); err != nil {
						t.Fatal(err)
					}
				}
			}
			user, class, _ := strings.Cut(test.want, " ")
			if err := h.take(user, class, "new", test.n, now); !errors.Is(err, test.err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if diff := cmp.Diff(test.lost, h.lost); diff != "" {
				t.Error(diff)
			}
			if h.pool.used > test.limit || h.pool.closing != 0 {
				t.Errorf("%d used and %d closing of %d", h.pool.used, h.pool.closing, test.limit)
			}
		})
	}
}

func TestUsersGetEvenShares(t *testing.T) {
	h := newFixture(t, 100, 100)
	ask := func(user string, times int) {
		for i := range times {
			_ = h.take(user, "flow", fmt.Sprint(i), 1, 0)
		}
	}
	ask("ann", 200)
	ask("small", 5)
	ask("bob", 200)
	ask("eve", 200)
	ask("ann", 200)
	got := make(map[string]int)
	for name, u := range h.pool.users {
		got[name] = u.used
	}
	// The other users share the rest evenly, to within one.
	if got["small"] != 5 || got["ann"]+got["bob"]+got["eve"] != 95 {
		t.Errorf("shares %v", got)
	}
	delete(got, "small")
	if least, most := slices.Min(slices.Collect(maps.Values(got))), slices.Max(slices.Collect(maps.Values(got))); most > least+1 {
		t.Errorf("shares %v", got)
	}
}

func TestRecentlyUsedLeaseIsKept(t *testing.T) {
	h := newFixture(t, 3, 3)
	for i := range 3 {
		if err := h.take("ann", "flow", fmt.Sprint(i), 1, uint32(i)); err != nil {
			t.Fatal(err)
		}
	}
	h.pool.seconds.Store(10)
	h.holders["ann flow0"].last = 9
	h.holders["ann flow1"].last = 10
	for _, number := range []string{"a", "b"} {
		_ = h.take("bob", "flow", number, 1, 10)
	}
	if diff := cmp.Diff([]string{"ann flow2"}, h.lost); diff != "" {
		t.Error(diff)
	}
}

func TestSlackBoundsDescriptorsBeingClosed(t *testing.T) {
	h := newFixture(t, 8, 2)
	for i := range 8 {
		if err := h.take("ann", "stream", fmt.Sprint(i), 1, uint32(i)); err != nil {
			t.Fatal(err)
		}
		h.holders[fmt.Sprint("ann stream", i)].slow = true
	}
	for i, want := range []error{nil, nil, ErrBusy} {
		if err := h.take("bob", "stream", fmt.Sprint(i), 1, 9); !errors.Is(err, want) {
			t.Errorf("bob's stream %d: %v, want %v", i, err, want)
		}
	}
	freed := h.pool.nextRelease()
	h.holders["ann stream0"].lease.Release()
	h.holders["ann stream0"].lease.Release() // counts once
	<-freed
	if err := h.take("bob", "stream", "2", 1, 9); err != nil {
		t.Error(err)
	}
	if err := h.take("bob", "stream", "3", 1, 9); !errors.Is(err, ErrBusy) {
		t.Errorf("with two being closed: %v", err)
	}
	if l := h.holders["ann stream1"].lease; !l.Taken() || h.holders["ann stream7"].lease.Taken() {
		t.Error("Taken is wrong")
	}
}

func TestSqueezeTakesLeaseOfPoolWithFreeOnes(t *testing.T) {
	h := newFixture(t, 100, 100)
	for i := range 3 {
		if err := h.take("ann", "flow", fmt.Sprint(i), 1, uint32(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.take("bob", "flow", "0", 1, 5); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		user string
		lost int // leases so far
		none bool
	}{{"ann", 0, true}, {"bob", 1, false}, {"bob", 2, false}, {"bob", 2, true}, {"", 3, false}} {
		freed := h.pool.Squeeze(test.user, Flow)
		if (freed == nil) != test.none || len(h.lost) != test.lost {
			t.Errorf("for %q: refused %v, lost %v", test.user, freed == nil, h.lost)
		}
		if freed != nil {
			<-freed
		}
	}
}

func TestEmptyPoolKeepsNoAccounts(t *testing.T) {
	h := newFixture(t, 10, 10)
	for i := range 10 {
		if err := h.take(fmt.Sprint("user", i), "flow", "", 1, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range h.holders {
		x.lease.Leave()
		x.lease.Leave()
	}
	if len(h.pool.users) != 0 || h.pool.used != 0 || h.pool.closing != 10 {
		t.Errorf("%d users, %d used, %d closing", len(h.pool.users), h.pool.used, h.pool.closing)
	}
	for _, x := range h.holders {
		x.lease.Release()
	}
	if h.pool.closing != 0 {
		t.Errorf("%d closing", h.pool.closing)
	}
}
