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

// thing holds a descriptor, or several.
type thing struct {
	name  string
	last  uint32
	lease *Lease
	slow  bool // GiveUp closes nothing yet
	gone  *[]string
}

func (h *thing) LastUsed() uint32 { return h.last }

func (h *thing) GiveUp(l *Lease) {
	*h.gone = append(*h.gone, h.name)
	if !h.slow {
		l.Release()
	}
}

var classNames = map[string]Class{"flow": Flow, "stream": Stream, "carrier": Carrier}

// house is a pool and its holders by name: "ann flow0" is ann's.
type house struct {
	t      *testing.T
	pool   *Pool
	things map[string]*thing
	gone   []string
}

func newHouse(t *testing.T, limit, slack int) *house {
	return &house{t: t, pool: New(limit, slack), things: make(map[string]*thing)}
}

// take takes n descriptors for a user's thing of the class that was last used at last.
func (h *house) take(user, class, number string, n int, last uint32) error {
	h.t.Helper()
	x := &thing{name: user + " " + class + number, last: last, gone: &h.gone}
	l, err := h.pool.Take(user, classNames[class], n, x)
	if (l == nil) != (err != nil) {
		h.t.Fatalf("lease %v, error %v", l, err)
	}
	if err == nil {
		x.lease = l
		h.things[x.name] = x
	}
	return err
}

func TestWhoGivesWhat(t *testing.T) {
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
		gone  []string
	}{
		{"there is room", 3, []has{{"ann flow", 1, []uint32{1, 2}}}, "bob flow", 1, nil, nil},
		{"the one used longest ago", 3, []has{{"ann flow", 1, []uint32{9, 7, 8}}}, "bob flow", 1, nil, []string{"ann flow1"}},
		{"of the user with most", 4, []has{{"ann flow", 1, []uint32{1}}, {"eve flow", 1, []uint32{50, 51, 52}}}, "bob flow", 1, nil, []string{"eve flow0"}},
		{"not from one with as many after it", 4, []has{{"ann flow", 1, []uint32{1, 2}}, {"bob flow", 1, []uint32{now, now}}}, "bob flow", 1, ErrFull, nil},
		{"nor with one more", 3, []has{{"ann flow", 1, []uint32{1, 2}}, {"bob flow", 1, []uint32{now}}}, "bob flow", 1, ErrFull, nil},
		{"but with two more", 4, []has{{"ann flow", 1, []uint32{1, 2, 3}}, {"bob flow", 1, []uint32{now}}}, "bob flow", 1, nil, []string{"ann flow0"}},
		{"idle flows before idle streams", 4, []has{{"ann stream", 1, []uint32{1, 2}}, {"ann flow", 1, []uint32{50, 51}}}, "bob flow", 1, nil, []string{"ann flow0"}},
		{"idle streams before idle carriers", 4, []has{{"ann carrier", 1, []uint32{1, 2}}, {"ann stream", 1, []uint32{50, 51}}}, "bob flow", 1, nil, []string{"ann stream0"}},
		{"idle carriers before flows in use", 4, []has{{"ann carrier", 1, []uint32{90, 91}}, {"ann flow", 1, []uint32{98, 99}}}, "bob flow", 1, nil, []string{"ann carrier0"}},
		{"flows in use before streams in use", 4, []has{{"ann stream", 1, []uint32{98, 98}}, {"ann flow", 1, []uint32{100, 99}}}, "bob flow", 1, nil, []string{"ann flow1"}},
		{"an own idle flow for an own stream", 2, []has{{"ann flow", 1, []uint32{70, 60}}}, "ann stream", 1, nil, []string{"ann flow1"}},
		{"but not one used of late", 2, []has{{"ann flow", 1, []uint32{72, 71}}}, "ann stream", 1, ErrFull, nil},
		{"nor an own idle stream for an own flow", 2, []has{{"ann stream", 1, []uint32{1, 1}}}, "ann flow", 1, ErrFull, nil},
		{"any own flow for a connection", 2, []has{{"ann flow", 1, []uint32{100, 99}}}, "ann carrier", 1, nil, []string{"ann flow1"}},
		{"but no own stream in use", 2, []has{{"ann stream", 1, []uint32{100, 99}}}, "ann carrier", 1, ErrFull, nil},
		{"as many as it takes", 6, []has{{"ann flow", 1, []uint32{1, 2, 3, 4, 5, 6}}}, "bob flow", 3, nil, []string{"ann flow0", "ann flow1", "ann flow2"}},
		{"or one of three for one", 6, []has{{"ann flow", 3, []uint32{2, 1}}}, "bob stream", 1, nil, []string{"ann flow1"}},
		{"and none if that is not enough", 6, []has{{"ann flow", 1, []uint32{1, 2, 3}}, {"eve flow", 1, []uint32{4, 5, 6}}}, "bob flow", 3, ErrFull, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHouse(t, test.limit, test.limit)
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
			if diff := cmp.Diff(test.gone, h.gone); diff != "" {
				t.Error(diff)
			}
			if h.pool.used > test.limit || h.pool.leaving != 0 {
				t.Errorf("%d used and %d leaving of %d", h.pool.used, h.pool.leaving, test.limit)
			}
		})
	}
}

func TestSharesOfManyUsersAreEven(t *testing.T) {
	h := newHouse(t, 100, 100)
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
	// The rest beyond the small user's is the others', to within one.
	if got["small"] != 5 || got["ann"]+got["bob"]+got["eve"] != 95 {
		t.Errorf("shares %v", got)
	}
	delete(got, "small")
	if least, most := slices.Min(slices.Collect(maps.Values(got))), slices.Max(slices.Collect(maps.Values(got))); most > least+1 {
		t.Errorf("shares %v", got)
	}
}

func TestUseKeepsWhatIsUsed(t *testing.T) {
	h := newHouse(t, 3, 3)
	for i := range 3 {
		if err := h.take("ann", "flow", fmt.Sprint(i), 1, uint32(i)); err != nil {
			t.Fatal(err)
		}
	}
	h.pool.seconds.Store(10)
	h.things["ann flow0"].last = 9
	h.things["ann flow1"].last = 10
	for _, number := range []string{"a", "b"} {
		_ = h.take("bob", "flow", number, 1, 10)
	}
	if diff := cmp.Diff([]string{"ann flow2"}, h.gone); diff != "" {
		t.Error(diff)
	}
}

func TestSlackBoundsWhatIsStillOpen(t *testing.T) {
	h := newHouse(t, 8, 2)
	for i := range 8 {
		if err := h.take("ann", "stream", fmt.Sprint(i), 1, uint32(i)); err != nil {
			t.Fatal(err)
		}
		h.things[fmt.Sprint("ann stream", i)].slow = true
	}
	for i, want := range []error{nil, nil, ErrBusy} {
		if err := h.take("bob", "stream", fmt.Sprint(i), 1, 9); !errors.Is(err, want) {
			t.Errorf("bob's stream %d: %v, want %v", i, err, want)
		}
	}
	freed := h.pool.nextRelease()
	h.things["ann stream0"].lease.Release()
	h.things["ann stream0"].lease.Release() // counts once
	<-freed
	if err := h.take("bob", "stream", "2", 1, 9); err != nil {
		t.Error(err)
	}
	if err := h.take("bob", "stream", "3", 1, 9); !errors.Is(err, ErrBusy) {
		t.Errorf("with two to be closed: %v", err)
	}
	if l := h.things["ann stream1"].lease; !l.Taken() || h.things["ann stream7"].lease.Taken() {
		t.Error("the wrong lease was taken")
	}
}

func TestSqueezeTakesThoughThePoolHasRoom(t *testing.T) {
	h := newHouse(t, 100, 100)
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
		gone int // by then
		none bool
	}{{"ann", 0, true}, {"bob", 1, false}, {"bob", 2, false}, {"bob", 2, true}, {"", 3, false}} {
		freed := h.pool.Squeeze(test.user, Flow)
		if (freed == nil) != test.none || len(h.gone) != test.gone {
			t.Errorf("for %q: nothing %v, gone %v", test.user, freed == nil, h.gone)
		}
		if freed != nil {
			<-freed
		}
	}
}

func TestEmptyPoolKeepsNobody(t *testing.T) {
	h := newHouse(t, 10, 10)
	for i := range 10 {
		if err := h.take(fmt.Sprint("user", i), "flow", "", 1, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range h.things {
		x.lease.Leave()
		x.lease.Leave()
	}
	if len(h.pool.users) != 0 || h.pool.used != 0 || h.pool.leaving != 10 {
		t.Errorf("%d users, %d used, %d leaving", len(h.pool.users), h.pool.used, h.pool.leaving)
	}
	for _, x := range h.things {
		x.lease.Release()
	}
	if h.pool.leaving != 0 {
		t.Errorf("%d leaving", h.pool.leaving)
	}
}
