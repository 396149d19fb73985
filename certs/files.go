package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"

	"wmproxy/internal/notify"
)

const (
	// settleTime is the time without a change before the files are read: a
	// renewal writes the two one after the other.
	settleTime = 100 * time.Millisecond
	// recheckInterval is for changes without a notification: on network file
	// systems, and of directories above the watched ones.
	recheckInterval = time.Minute
)

// Files is a certificate and a key in PEM files, as a public CA issues them,
// read again when they change. A pair that cannot be used (half-written, or a
// certificate for another key) is logged, and the last good pair stays in use.
type Files struct {
	certFile, keyFile string
	log               *slog.Logger

	current atomic.Pointer[tls.Certificate]
	// The last pair that was read, good or bad: it is parsed and logged only if
	// it has changed. Owned by run after ServerFromFiles.
	certPEM, keyPEM []byte

	watcher *fsnotify.Watcher // nil if the system refused one
	watched map[string]bool   // directories
	asked   notify.Signal     // Reload was called
	done    chan struct{}
	close   sync.Once
	running sync.WaitGroup
}

// ServerFromFiles loads the pair and watches it until Close.
func ServerFromFiles(certFile, keyFile string, log *slog.Logger) (*Files, error) {
	f := &Files{
		certFile: certFile, keyFile: keyFile,
		log:     log,
		watched: make(map[string]bool),
		asked:   notify.New(),
		done:    make(chan struct{}),
	}
	// Watch before reading, so that a change in between is seen.
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("certificate files are checked once a minute only, the system refused to watch them", "error", err)
	} else {
		f.watcher = watcher
		f.watch()
	}
	if _, err := f.reload(); err != nil {
		f.closeWatcher()
		return nil, err
	}
	f.running.Go(f.run)
	return f, nil
}

// Certificate returns the newest good pair, for ServerConfig.
func (f *Files) Certificate() *tls.Certificate { return f.current.Load() }

// Reload makes Files read the files again, changed or not, and log the outcome.
// It does not wait for it.
func (f *Files) Reload() { f.asked.Wake() }

// Close stops the watching and waits for its end. It may be called more than once.
// Certificate stays valid.
func (f *Files) Close() error {
	f.close.Do(func() { close(f.done) })
	f.running.Wait()
	return nil
}

func (f *Files) run() {
	defer f.closeWatcher()
	// Without a watcher the channels are nil and only the ticker fires.
	var events chan fsnotify.Event
	var errs chan error
	if f.watcher != nil {
		events, errs = f.watcher.Events, f.watcher.Errors
	}
	ticker := time.NewTicker(recheckInterval)
	defer ticker.Stop()
	settled := time.NewTimer(settleTime)
	settled.Stop()
	defer settled.Stop()
	for {
		select {
		case <-f.done:
			return
		case <-events:
			settled.Reset(settleTime)
		case <-errs: // an overflow: events were lost
			settled.Reset(settleTime)
		case <-f.asked:
			f.certPEM, f.keyPEM = nil, nil // so that they count as changed
			f.check(true)
		case <-ticker.C:
			f.check(false)
		case <-settled.C:
			f.check(false)
		}
	}
}

// check reads the files and logs a change, or, if asked, the outcome in any case.
func (f *Files) check(asked bool) {
	if f.watcher != nil {
		f.watch()
	}
	changed, err := f.reload()
	switch {
	case err != nil && (changed || asked):
		f.log.Error("the changed certificate files cannot be used, the old ones stay", "cert", f.certFile, "key", f.keyFile, "error", err)
	case changed:
		f.log.Info("certificate files were read again", "cert", f.certFile, "expires", f.Certificate().Leaf.NotAfter)
	}
}

// reload reads both files and reports whether they differ from the last time.
func (f *Files) reload() (changed bool, err error) {
	certPEM, err := readPEM(f.certFile)
	if err != nil {
		return f.differs(nil, nil), err
	}
	keyPEM, err := readPEM(f.keyFile)
	if err != nil {
		return f.differs(certPEM, nil), err
	}
	if !f.differs(certPEM, keyPEM) {
		return false, nil
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return true, fmt.Errorf("%s and %s are not a certificate and its key (%w)", f.certFile, f.keyFile, err)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return true, err
		}
	}
	f.current.Store(&pair)
	return true, nil
}

func (f *Files) differs(certPEM, keyPEM []byte) bool {
	if bytes.Equal(certPEM, f.certPEM) && bytes.Equal(keyPEM, f.keyPEM) {
		return false
	}
	f.certPEM, f.keyPEM = certPEM, keyPEM
	return true
}

// watch watches directories, not files: certbot replaces a symlink in the
// directory, Kubernetes a symlink to another directory beside it, editors the
// file itself. If the name is a symlink, its target's directory is watched too.
func (f *Files) watch() {
	wanted := make(map[string]bool)
	for _, file := range []string{f.certFile, f.keyFile} {
		wanted[filepath.Dir(file)] = true
		if target, err := filepath.EvalSymlinks(file); err == nil {
			wanted[filepath.Dir(target)] = true
		}
	}
	for dir := range f.watched {
		if !wanted[dir] {
			_ = f.watcher.Remove(dir) // an error means that it is gone already
			delete(f.watched, dir)
		}
	}
	for dir := range wanted {
		// Added each time: a directory that was deleted and made again has lost
		// its watch, and Add does nothing for a watched one.
		if err := f.watcher.Add(dir); err != nil && !f.watched[dir] {
			f.log.Warn("this directory of certificate files is checked once a minute only", "dir", dir, "error", err)
		}
		f.watched[dir] = true
	}
}

func (f *Files) closeWatcher() {
	if f.watcher != nil {
		_ = f.watcher.Close()
	}
}
