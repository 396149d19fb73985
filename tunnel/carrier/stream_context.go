package carrier

import (
	"context"
	"sync"
)

// StreamContext is a Stream's Context, made when somebody asks for it. The zero value is ready.
type StreamContext struct {
	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelCauseFunc
	over   error // not nil: it has ended
}

// Of returns the context. It ends with that of the carrier.
func (c *StreamContext) Of(carrier context.Context) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		c.ctx, c.cancel = context.WithCancelCause(carrier)
		if c.over != nil {
			c.cancel(c.over)
		}
	}
	return c.ctx
}

// End ends it. The first error counts.
func (c *StreamContext) End(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over != nil {
		return
	}
	c.over = err
	if c.cancel != nil {
		c.cancel(err)
	}
}
