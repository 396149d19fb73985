package main

import (
	"log/slog"
	"os/signal"
	"sync"
	"syscall"
)

// keepHangups keeps SIGHUP from ending the process, from now on.
func (p *program) keepHangups() {
	if p.hangups != nil {
		signal.Notify(p.hangups, syscall.SIGHUP)
	}
}

// onHangup calls reload at each SIGHUP until stop is called, and for one that came
// since keepHangups.
func (p *program) onHangup(reload func()) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-p.hangups:
				reload()
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

// nothingToReload returns the reload of a command that reads everything at its start.
func nothingToReload(log *slog.Logger) func() {
	return func() {
		log.Info("SIGHUP: there is nothing to read again; start anew for another link or password")
	}
}
