package server

import (
	"crypto/tls"
	"fmt"

	"wmproxy/certs"
)

// Files of the state directory.
const (
	fileCert  = "identity.crt"
	fileKey   = "identity.key"
	fileToken = "token"
	fileLink  = "client.link"
)

// identity is the certificate that the server shows, and what follows from it.
type identity struct {
	certificate func() *tls.Certificate
	pin         *certs.Pin // nil with a certificate from a public CA
	resetKey    [32]byte
	close       func() error
}

func (id *identity) Close() {
	if id.close != nil {
		_ = id.close()
	}
}

func (s *Server) loadIdentity() (*identity, error) {
	id := &identity{}
	if s.cfg.CertFile != "" {
		files, err := certs.ServerFromFiles(s.cfg.CertFile, s.cfg.KeyFile, s.cfg.Log)
		if err != nil {
			return nil, err
		}
		id.certificate, id.close = files.Certificate, files.Close
	} else {
		own, err := certs.LoadOrCreate(s.cfg.State.Join(fileCert), s.cfg.State.Join(fileKey))
		if err != nil {
			return nil, err
		}
		pin := own.Pin()
		id.certificate, id.pin = own.Certificate, &pin
	}
	key, err := certs.StatelessResetKey(id.certificate())
	if err != nil {
		id.Close()
		return nil, fmt.Errorf("deriving the stateless reset key: %w", err)
	}
	id.resetKey = key
	return id, nil
}
