// Package certs identifies a server to its clients: identities (a private key and
// its certificate), pins of public keys, TLS 1.3 configurations for both ends, and
// certificate files that are read again when they change. It must not know its
// users.
package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// maxPEM bounds a certificate or key file, in bytes.
const maxPEM = 1 << 20

const (
	certType = "CERTIFICATE"
	keyType  = "PRIVATE KEY" // PKCS #8, RFC 5958
)

// validYears and validBefore are generous: pinned clients ignore dates, and an
// expired identity would have to be replaced together with all links.
const (
	validYears  = 100
	validBefore = 48 * time.Hour
)

// Identity is a private key with its certificate. It does not change.
type Identity struct {
	cert tls.Certificate
	pin  Pin
}

// NewIdentity returns a new ECDSA P-256 key with a self-signed certificate, in memory.
func NewIdentity() (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := selfSign(key)
	if err != nil {
		return nil, err
	}
	return newIdentity(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
}

// LoadOrCreate returns the identity in the two PEM files. It makes one if neither
// exists, and a new certificate if only the key does, which keeps the pin. A
// certificate without its key is an error, because a new key would break every
// link. Files are written atomically with mode 0600, into a directory that must
// exist.
func LoadOrCreate(certFile, keyFile string) (*Identity, error) {
	keyPEM, err := readPEM(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return create(certFile, keyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; restore the file or its permissions", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the key in %s cannot be read (%w); restore it, or remove it and %s for a new identity", keyFile, err, certFile)
	}
	certPEM, err := readPEM(certFile)
	if errors.Is(err, fs.ErrNotExist) {
		return certify(key, certFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; restore the file or its permissions", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the certificate in %s does not fit the key in %s (%w); remove the certificate and a new one is made", certFile, keyFile, err)
	}
	return newIdentity(pair)
}

// create writes the key first: if it crashes between the two, the next start makes
// a certificate for that key.
func create(certFile, keyFile string) (*Identity, error) {
	if _, err := os.Stat(certFile); err == nil {
		return nil, fmt.Errorf("the certificate %s has lost its key %s; restore the key, or remove the certificate for a new identity", certFile, keyFile)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := writePEM(keyFile, keyType, der); err != nil {
		return nil, err
	}
	return certify(key, certFile)
}

func certify(key crypto.Signer, certFile string) (*Identity, error) {
	der, err := selfSign(key)
	if err != nil {
		return nil, err
	}
	if err := writePEM(certFile, certType, der); err != nil {
		return nil, err
	}
	return newIdentity(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
}

func newIdentity(cert tls.Certificate) (*Identity, error) {
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, err
	}
	cert.Leaf = leaf
	return &Identity{cert: cert, pin: PinOf(leaf)}, nil
}

func selfSign(key crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "wmproxy"},
		NotBefore:             now.Add(-validBefore),
		NotAfter:              now.AddDate(validYears, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
}

// Certificate returns the identity for ServerConfig. The caller must not change it.
func (id *Identity) Certificate() *tls.Certificate { return &id.cert }

// Pin returns the pin of the identity's public key.
func (id *Identity) Pin() Pin { return id.pin }

// resetLabel separates this use of the key from its use in TLS.
const resetLabel = "wmproxy stateless reset"

// StatelessResetKey returns the key of QUIC's stateless resets (RFC 9000 section
// 10.3.2), derived from the certificate's private key by HKDF with SHA-256. It
// survives a restart, so that clients of the previous process learn at once that
// it is gone.
func StatelessResetKey(cert *tls.Certificate) ([32]byte, error) {
	var reset [32]byte
	secret, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return reset, fmt.Errorf("certs: stateless reset key: %w", err)
	}
	key, err := hkdf.Key(sha256.New, secret, nil, resetLabel, len(reset))
	if err != nil {
		return reset, fmt.Errorf("certs: stateless reset key: %w", err)
	}
	copy(reset[:], key)
	return reset, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != keyType {
		return nil, errors.New("no PEM block of type " + keyType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, errors.New("this kind of key cannot sign")
	}
	return key, nil
}

func readPEM(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, readError(path, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return nil, readError(path, err)
	}
	if len(data) > maxPEM {
		return nil, fmt.Errorf("%s is larger than %d bytes and so no PEM file of a key or a certificate", path, maxPEM)
	}
	return data, nil
}

// readError returns an error that names the path once.
func readError(path string, err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return fmt.Errorf("cannot read %s (%w)", path, err)
}

// writePEM writes a file of mode 0600, wholly or not at all.
func writePEM(path, blockType string, der []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp") // mode 0600
	if err != nil {
		return writeError(path, err)
	}
	err = pem.Encode(f, &pem.Block{Type: blockType, Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return writeError(path, err)
	}
	return nil
}

// writeError returns an error that names path and not the temporary file.
func writeError(path string, err error) error {
	var pathErr *fs.PathError
	var linkErr *os.LinkError
	switch {
	case errors.As(err, &pathErr):
		err = pathErr.Err
	case errors.As(err, &linkErr):
		err = linkErr.Err
	}
	return fmt.Errorf("cannot write %s (%w); make room or fix the permissions of its directory", path, err)
}
