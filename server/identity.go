package server

import (
	"crypto/tls"
	"fmt"
	"log/slog"

	"wmproxy/certs"
	"wmproxy/internal/state"
)

// Files of the state directory.
const (
	fileCert  = "identity.crt"
	fileKey   = "identity.key"
	fileToken = "token"
)

// LinkFile is the name of the file in the state directory with the client's link.
const LinkFile = "client.link"

// identity is the certificate of the server, and the values that follow from it.
type identity struct {
	certificate func() *tls.Certificate
	pin         *certs.Pin // nil with a certificate from a public CA
	resetKey    [32]byte
	reload      func() // nil for the server's own, which does not change
	close       func() error
}

func (id *identity) Close() {
	if id.close != nil {
		_ = id.close()
	}
}

// protect makes the files of the state directory private and logs which secrets
// other users of the machine could read.
func protect(dir *state.Dir, log *slog.Logger) error {
	exposed, err := dir.Protect(fileKey, fileToken, LinkFile)
	if err != nil {
		return err
	}
	for _, name := range exposed {
		secret := name
		if name == LinkFile {
			secret = fileToken
		}
		log.Warn("other users of this machine could read this file until now; unless you trust them, delete the secret and start again, which makes a new one and a new link",
			slog.String("file", dir.Join(name)), slog.String("secret", dir.Join(secret)))
	}
	return nil
}

func (s *Server) loadIdentity() (*identity, error) {
	own, err := certs.LoadOrCreate(s.cfg.State.Join(fileCert), s.cfg.State.Join(fileKey))
	if err != nil {
		return nil, err
	}
	id := &identity{certificate: own.Certificate}
	// Also with a certificate from a public CA: its key changes at each renewal.
	if id.resetKey, err = certs.StatelessResetKey(own.Certificate()); err != nil {
		return nil, fmt.Errorf("deriving the stateless reset key: %w", err)
	}
	if s.cfg.Cert == "" {
		pin := own.Pin()
		id.pin = &pin
		return id, nil
	}
	files, err := certs.ServerFromFiles(s.cfg.Cert, s.cfg.Key, s.cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("%w; check --cert and --key", err)
	}
	id.certificate, id.reload, id.close = files.Certificate, files.Reload, files.Close
	return id, nil
}
