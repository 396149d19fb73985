package direct

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"
)

const (
	// ExporterLabel is the label for the TLS exporter, and SecretLen the length in bytes to export.
	ExporterLabel = "EXPORTER-wmproxy-direct"
	SecretLen     = 32

	labelClient = "wmproxy client"
	labelServer = "wmproxy server"
	labelUpdate = "wmproxy ku"
	labelKey    = "wmproxy key"
	labelIV     = "wmproxy iv"
	labelHP     = "wmproxy hp"

	ivLen = 12

	// updateAfter is the number of packets after which a generation ends, and maxSealed the
	// number at which it has to: the confidentiality limit of AES-GCM (RFC 9001 section 6.6).
	updateAfter = 1 << 20
	maxSealed   = 1 << 23

	// maxFailed is the number of packets that may fail to open, with all keys together: half the
	// integrity limit of ChaCha20-Poly1305, the lowest of all suites (RFC 9001 section 6.6).
	maxFailed = 1 << 35
)

// suite is the part of a TLS cipher suite that protects packets.
type suite struct {
	hash      func() hash.Hash
	hashLen   int
	keyLen    int
	aead      func(key []byte) (cipher.AEAD, error)
	protector func(key []byte) (headerProtector, error)
}

var suites = map[uint16]suite{
	tls.TLS_AES_128_GCM_SHA256:       {sha256.New, sha256.Size, 16, newGCM, newAESProtector},
	tls.TLS_AES_256_GCM_SHA384:       {sha512.New384, sha512.Size384, 32, newGCM, newAESProtector},
	tls.TLS_CHACHA20_POLY1305_SHA256: {sha256.New, sha256.Size, chacha20poly1305.KeySize, chacha20poly1305.New, newChaChaProtector},
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// expandLabel is HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
func (s *suite) expandLabel(secret []byte, label string, length int) ([]byte, error) {
	const prefix = "tls13 "
	info := binary.BigEndian.AppendUint16(nil, uint16(length))
	info = append(info, byte(len(prefix)+len(label)))
	info = append(info, prefix+label...)
	return hkdf.Expand(s.hash, secret, string(append(info, 0)), length)
}

// New returns the two halves of one end: one seals its packets, to a peer with the connection ID, and
// one opens the peer's. cipherSuite is that of the TLS connection, and secret comes from its exporter. It must be
// called once for each end of a TLS connection: packet numbers begin at 0, so a second pair
// would use nonces again. SetPeer serves another path.
func New(cipherSuite uint16, secret []byte, client bool, peer ConnectionID) (*Sealer, *Opener, error) {
	s, ok := suites[cipherSuite]
	if !ok {
		return nil, nil, fmt.Errorf("direct packets do not support the cipher suite %s", tls.CipherSuiteName(cipherSuite))
	}
	if len(secret) != SecretLen {
		return nil, nil, fmt.Errorf("the secret for direct packets has %d bytes, want %d", len(secret), SecretLen)
	}
	sealLabel, openLabel := labelServer, labelClient
	if client {
		sealLabel, openLabel = openLabel, sealLabel
	}
	sealer := &Sealer{peer: peer}
	opener := &Opener{}
	var err error
	if sealer.keys, sealer.hp, err = s.firstKeys(secret, sealLabel); err != nil {
		return nil, nil, err
	}
	if opener.current, opener.hp, err = s.firstKeys(secret, openLabel); err != nil {
		return nil, nil, err
	}
	if opener.next, err = opener.current.update(); err != nil {
		return nil, nil, err
	}
	return sealer, opener, nil
}

// keys are those of one direction and generation.
type keys struct {
	suite  *suite
	secret []byte
	aead   cipher.AEAD
	iv     [ivLen]byte
	nonce  [ivLen]byte // belongs to the call of nonceOf
}

// firstKeys returns generation 0 of the direction that label names, and its header protection.
func (s *suite) firstKeys(exported []byte, label string) (*keys, headerProtector, error) {
	secret, err := s.expandLabel(exported, label, s.hashLen)
	if err != nil {
		return nil, nil, err
	}
	k, err := s.newKeys(secret)
	if err != nil {
		return nil, nil, err
	}
	hpKey, err := s.expandLabel(secret, labelHP, s.keyLen)
	if err != nil {
		return nil, nil, err
	}
	hp, err := s.protector(hpKey)
	return k, hp, err
}

func (s *suite) newKeys(secret []byte) (*keys, error) {
	key, err := s.expandLabel(secret, labelKey, s.keyLen)
	if err != nil {
		return nil, err
	}
	iv, err := s.expandLabel(secret, labelIV, ivLen)
	if err != nil {
		return nil, err
	}
	k := &keys{suite: s, secret: secret, iv: [ivLen]byte(iv)}
	k.aead, err = s.aead(key)
	return k, err
}

// update returns the keys of the next generation (RFC 9001 section 6.1).
func (k *keys) update() (*keys, error) {
	secret, err := k.suite.expandLabel(k.secret, labelUpdate, k.suite.hashLen)
	if err != nil {
		return nil, err
	}
	return k.suite.newKeys(secret)
}

// nonceOf returns the nonce for a packet, valid until the next call.
func (k *keys) nonceOf(number uint64) []byte {
	k.nonce = k.iv
	low := k.nonce[ivLen-8:]
	binary.BigEndian.PutUint64(low, binary.BigEndian.Uint64(low)^number)
	return k.nonce[:]
}

// headerProtector makes the mask of a packet (RFC 9001 section 5.4.1).
type headerProtector interface {
	mask(sample *[sampleLen]byte) [1 + numberLen]byte
}

// aesProtector is that of RFC 9001 section 5.4.3.
type aesProtector struct {
	block cipher.Block
	out   [aes.BlockSize]byte // here, because a call over the interface moves it to the heap
}

func newAESProtector(key []byte) (headerProtector, error) {
	block, err := aes.NewCipher(key)
	return &aesProtector{block: block}, err
}

func (p *aesProtector) mask(sample *[sampleLen]byte) [1 + numberLen]byte {
	p.block.Encrypt(p.out[:], sample[:])
	return [1 + numberLen]byte(p.out[:])
}

// chachaProtector is that of RFC 9001 section 5.4.4.
type chachaProtector [chacha20.KeySize]byte

func newChaChaProtector(key []byte) (headerProtector, error) {
	p := chachaProtector(key)
	return &p, nil
}

// mask allocates nothing as long as the cipher does not escape, which TestSealAndOpenDoNotAllocate checks.
func (p *chachaProtector) mask(sample *[sampleLen]byte) (out [1 + numberLen]byte) {
	c, err := chacha20.NewUnauthenticatedCipher(p[:], sample[4:])
	if err != nil {
		panic(err) // the lengths are fixed
	}
	c.SetCounter(binary.LittleEndian.Uint32(sample[:]))
	c.XORKeyStream(out[:], out[:])
	return out
}
