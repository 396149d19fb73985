package tunnel

import (
	"context"
	"sync"
)

// streamContext is a Stream's Context, made when somebody asks for it. The zero value is ready.
type streamContext struct {
	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelCauseFunc
	over   error // not nil: it has ended
}

// of returns the context. It ends with that of the carrier.
func (c *streamContext) of(carrier context.Context) context.Context {
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

// end ends it. The first error counts.
func (c *streamContext) end(err error) {
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
