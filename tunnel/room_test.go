package tunnel

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/netsim"
	"wmproxy/tunnel/carrier"
)

// smallPending becomes a carrier that takes few streams.
type smallPending struct {
	*netsim.End
	most int64
}

func (p smallPending) Start(ctx context.Context) (carrier.Carrier, error) {
	c, err := p.End.Start(ctx)
	if err != nil {
		return nil, err
	}
	return &smallCarrier{Carrier: c, most: p.most}, nil
}

type smallCarrier struct {
	carrier.Carrier
	most, open int64
}

func (c *smallCarrier) OpenStream(ctx context.Context) (carrier.Stream, error) {
	if atomic.AddInt64(&c.open, 1) > c.most {
		return nil, carrier.ErrStreamLimit
	}
	return c.Carrier.OpenStream(ctx)
}

// joinSmall attaches a carrier that takes so many streams.
func (p *twoPaths) joinSmall(cfg netsim.Config, most int64) {
	p.t.Helper()
	near, far := netsim.New(cfg, cfg)
	attached := make(chan error, 1)
	go func() {
		_, err := p.host.Attach(context.Background(), far)
		attached <- err
	}()
	_, err := p.session.Attach(context.Background(), smallPending{near, most}, alice)
	if err := errors.Join(err, <-attached); err != nil {
		p.t.Fatal(err)
	}
}

// keep opens a stream and keeps it until the test ends. It returns its carrier and how long opening took.
func (p *twoPaths) keep() (over *Path, took time.Duration, err error) {
	began := time.Now()
	st, _, err := p.session.OpenStream(context.Background(), []byte("target"))
	if err != nil {
		return nil, time.Since(began), err
	}
	p.t.Cleanup(func() { st.Reset(carrier.CodeNone) })
	return st.(*carriedStream).a, time.Since(began), nil
}

func TestStreamsGoWhereThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		p.joinSmall(lossyPath, 1)
		p.joinSmall(orderedPath, 2)
		var kinds []carrier.Kind
		for range 3 {
			a, _, err := p.keep()
			if err != nil {
				t.Fatal(err)
			}
			kinds = append(kinds, a.Kind())
		}
		if want := []carrier.Kind{carrier.KindYamux, carrier.KindYamux, carrier.KindQUIC}; !slices.Equal(kinds, want) {
			t.Errorf("streams over %v, want %v", kinds, want)
		}

		if p.session.Needs(carrier.KindYamux) {
			t.Error("another carrier is asked for before a stream waits for it")
		}
		time.AfterFunc(time.Second, func() {
			if !p.session.Needs(carrier.KindYamux) || p.session.Needs(carrier.KindQUIC) {
				t.Error("a stream waits for room, and not yamux but something else is asked for")
			}
			p.joinSmall(orderedPath, 1)
		})
		if a, took, err := p.keep(); err != nil || a.Kind() != carrier.KindYamux || took > 2*time.Second {
			t.Errorf("after %v: %v; want the carrier that came after a second", took, err)
		}
		if _, took, err := p.keep(); !errors.Is(err, carrier.ErrStreamLimit) || took != 0 {
			t.Errorf("after %v: %v; want a refusal at once where there are two of each", took, err)
		}
	})
}

func TestStreamIsRefusedIfNoRoomComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		p.joinSmall(orderedPath, 0)
		if _, took, err := p.keep(); !errors.Is(err, carrier.ErrStreamLimit) || took != attachWait {
			t.Errorf("after %v: %v; want a refusal after %v", took, err, attachWait)
		}
		if p.session.Needs(carrier.KindYamux) {
			t.Error("another carrier is asked for when no stream waits for it")
		}
	})
}
