package egress

import (
	"context"
	"slices"
	"strings"
	"time"
)

const (
	// maxLookups bounds the look-ups of all users at a time. Each has up to three sockets.
	maxLookups = 32

	// lookupTurn is the time that a look-up keeps its slot while others of its user wait.
	// A name that takes longer is looked up again later; by then the DNS server mostly has
	// the answer.
	lookupTurn = 500 * time.Millisecond
)

// asker is a user's part of the resolver, guarded by resolver.mu. Names of a silent zone take
// five seconds each, so that a user with many of them could take every slot. A user with fewer
// slots than another therefore takes one of its slots, and so does a zone of a user. Within a
// zone a look-up loses its slot after its turn, and the latest question is served first.
type asker struct {
	line    []*answer      // names waiting for a slot
	running int            // slots in use
	zones   map[string]int // of those, by zone
	waiting int            // callbacks, at most maxUserLookups
}

// first returns the next name in u's line: the latest of the zone with the fewest slots.
func (u *asker) first() *answer {
	next := u.line[len(u.line)-1]
	for _, a := range slices.Backward(u.line) {
		if u.zones[a.zone] < u.zones[next.zone] {
			next = a
		}
	}
	return next
}

// zoneOf returns the last two labels of a name.
func zoneOf(name string) string {
	name = strings.TrimSuffix(name, ".")
	last := strings.LastIndexByte(name, '.')
	return name[strings.LastIndexByte(name[:max(last, 0)], '.')+1:]
}

// lookup is the look-up of a name with a slot.
type lookup struct {
	answer *answer
	began  time.Time
	cancel context.CancelFunc
	turn   *time.Timer
}

// enter puts a at the front of u's line and starts its timeout.
func (r *resolver) enter(u *asker, a *answer) {
	if a.expiry != nil {
		a.expiry.Stop()
	}
	now := time.Now()
	a.asker, a.until = u, now.Add(resolveTimeout)
	if a.latest.Before(a.until) {
		a.until = a.latest
	}
	a.expiry = time.AfterFunc(a.until.Sub(now), func() { r.expire(a) })
	r.putInLine(a, len(u.line))
	r.fillSlots()
}

// putInLine inserts a into the line of its user.
func (r *resolver) putInLine(a *answer, at int) {
	u := a.asker
	if len(u.line) == 0 {
		r.lines = append(r.lines, u)
	}
	u.line = slices.Insert(u.line, at, a)
}

// leaveLine removes a from its line.
func (r *resolver) leaveLine(a *answer) {
	u := a.asker
	at := slices.Index(u.line, a)
	u.line = slices.Delete(u.line, at, at+1)
	if len(u.line) == 0 {
		u.line = nil
		at = slices.Index(r.lines, u)
		r.lines = slices.Delete(r.lines, at, at+1)
	}
}

// expire fails a if it is still in line after its timeout.
func (r *resolver) expire(a *answer) {
	r.mu.Lock()
	if r.closed || !a.pending || a.lookup != nil || time.Now().Before(a.until) {
		r.mu.Unlock()
		return
	}
	r.leaveLine(a)
	waiting := r.settle(a, nil, context.DeadlineExceeded, false)
	r.wg.Add(1)
	r.mu.Unlock()
	tell(waiting, nil, context.DeadlineExceeded)
	r.wg.Done()
}

// shed fails the name that has been longest in u's line, if no other user waits for it, and
// reports whether that makes room for a callback. Another goroutine calls the callbacks, since
// the caller of resolve may hold locks that they take.
func (r *resolver) shed(u *asker) bool {
	for _, a := range u.line {
		if slices.ContainsFunc(a.waiting, func(w waiter) bool { return w.asker != u }) {
			continue
		}
		r.leaveLine(a)
		waiting := r.settle(a, nil, errBusy, false)
		r.wg.Go(func() { tell(waiting, nil, errBusy) })
		return true
	}
	return false
}

// fillSlots starts look-ups until no name in line can have a slot.
func (r *resolver) fillSlots() {
	for now := time.Now(); ; {
		u := r.next(now)
		if u == nil {
			return
		}
		a := u.first()
		r.leaveLine(a)
		r.letOthersFirst(u)
		r.start(a)
	}
}

// letOthersFirst moves u's line behind those of users with as many slots.
func (r *resolver) letOthersFirst(u *asker) {
	if at := slices.Index(r.lines, u); at >= 0 {
		r.lines = append(slices.Delete(r.lines, at, at+1), u)
	}
}

// next returns the user whose name gets the next slot, and frees the slot if necessary: one of the
// user with most slots, for the user with the fewest, until they differ by one; then the same for
// the zones of a user; then that of a look-up after its turn.
func (r *resolver) next(now time.Time) *asker {
	if len(r.lines) == 0 {
		return nil
	}
	fewest := slices.MinFunc(r.lines, func(a, b *asker) int { return a.running - b.running })
	if len(r.running) < maxLookups {
		return fewest
	}
	most := slices.MaxFunc(r.running, func(a, b *lookup) int { return a.answer.asker.running - b.answer.asker.running })
	if most.answer.asker.running > fewest.running+1 {
		r.stop(most) // the oldest of that user
		return fewest
	}
	for _, u := range r.lines {
		if l := r.crowded(u); l != nil {
			r.stop(l) // the oldest of that zone
			return u
		}
	}
	for _, l := range r.running {
		if now.Sub(l.began) < lookupTurn {
			continue
		}
		owner, zone := l.answer.asker, l.answer.zone
		if fewest.running < owner.running {
			r.stop(l)
			r.letOthersFirst(owner)
			return fewest
		}
		if len(owner.line) == 0 {
			continue
		}
		if next := owner.first().zone; next == zone || owner.zones[next] < owner.zones[zone] {
			r.stop(l)
			r.letOthersFirst(owner)
			return owner
		}
	}
	return nil
}

// crowded returns the oldest look-up of u's zone with most slots, if that still has more than the
// zone of u's next name afterwards.
func (r *resolver) crowded(u *asker) (out *lookup) {
	most := u.zones[u.first().zone] + 1
	for _, l := range r.running {
		if n := u.zones[l.answer.zone]; l.answer.asker == u && n > most {
			most, out = n, l
		}
	}
	return out
}

// start gives a slot to a and starts its look-up.
func (r *resolver) start(a *answer) {
	ctx, cancel := context.WithDeadline(r.ctx, a.until)
	l := &lookup{answer: a, began: time.Now(), cancel: cancel}
	l.turn = time.AfterFunc(lookupTurn, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.closed {
			r.fillSlots()
		}
	})
	a.lookup = l
	a.asker.running++
	if a.asker.zones == nil {
		a.asker.zones = make(map[string]int)
	}
	a.asker.zones[a.zone]++
	r.running = append(r.running, l)
	r.wg.Go(func() { r.run(ctx, l) })
}

// free frees l's slot.
func (r *resolver) free(l *lookup) {
	l.cancel()
	l.turn.Stop()
	l.answer.lookup = nil
	u, zone := l.answer.asker, l.answer.zone
	u.running--
	if u.zones[zone]--; u.zones[zone] == 0 {
		delete(u.zones, zone)
	}
	at := slices.Index(r.running, l)
	r.running = slices.Delete(r.running, at, at+1)
}

// stop frees l's slot and puts its name at the end of the line of the user with the fewest slots
// that waits for it.
func (r *resolver) stop(l *lookup) {
	r.free(l)
	a := l.answer
	for _, w := range a.waiting {
		if w.asker.running < a.asker.running {
			a.asker = w.asker
		}
	}
	a.expiry.Reset(time.Until(a.until))
	r.putInLine(a, 0)
}

// run looks up the name of l.
func (r *resolver) run(ctx context.Context, l *lookup) {
	addrs, err := r.ask(ctx, l.answer.name)
	// The error of a look-up whose time ended soon after its start says nothing about the name.
	keep := err == nil || ctx.Err() == nil || time.Since(l.began) >= lookupTurn
	r.mu.Lock()
	var waiting []waiter
	if l.answer.lookup == l { // it was not stopped
		r.free(l)
		waiting = r.settle(l.answer, addrs, err, keep)
		r.fillSlots()
	}
	r.mu.Unlock()
	tell(waiting, addrs, err)
}
