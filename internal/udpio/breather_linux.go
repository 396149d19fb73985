package udpio

import "time"

// busyReads is how often a reader may find something without a breath.
const busyReads = 256

// breather lets the runtime ask its poller now and then. It does so by itself
// only when nothing can run, or when its monitor thread wakes up, which calls that
// the scheduler is not told of never see to. A reader that always finds something
// would so shut out all other connections of the process.
type breather struct{ n int }

// busy is called before each read.
func (b *breather) busy() {
	if b.n++; b.n == busyReads {
		b.n = 0
		time.Sleep(time.Microsecond) // parked, so that the poller is asked
	}
}
