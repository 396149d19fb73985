package direct

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 9001 appendices A.3 and A.5, with QUIC's labels in place of ours.
func TestPrimitivesMatchRFC9001(t *testing.T) {
	for name, c := range map[string]struct {
		suite                   uint16
		secret, key, iv, hp, ku string
		number                  uint64
		header, plain, sealed   string
		sample, mask            string
	}{
		"AES-128-GCM": {
			suite:  tls.TLS_AES_128_GCM_SHA256,
			secret: "3c199828fd139efd216c155ad844cc81fb82fa8d7446fa7d78be803acdda951b",
			key:    "cf3a5331653c364c88f0f379b6067e37",
			iv:     "0ac1493ca1905853b0bba03e",
			hp:     "c206b8d9b9f0f37644430b490eeaa314",
			number: 1,
			header: "c1000000010008f067a5502a4262b50040750001",
			plain: "02000000000600405a020000560303eefce7f7b37ba1d1632e96677825ddf73988cfc79825df566dc5430b9a045a12" +
				"00130100002e00330024001d00209d3c940d89690b84d08a60993c144eca684d1081287c834d5311bcf32bb9da1a002b00020304",
			sealed: "5a482cd0991cd25b0aac406a5816b6394100f37a1c69797554780bb38cc5a99f5ede4cf73c3ec2493a1839b3dbcba3f6ea46c5b7684d" +
				"f3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb84022f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc42158407dd074ee",
			sample: "2cd0991cd25b0aac406a5816b6394100",
			mask:   "2ec0d8356a",
		},
		"ChaCha20-Poly1305": {
			suite:  tls.TLS_CHACHA20_POLY1305_SHA256,
			secret: "9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b",
			key:    "c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8",
			iv:     "e0459b3474bdd0e44a41c144",
			hp:     "25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4",
			ku:     "1223504755036d556342ee9361d253421a826c9ecdf3c7148684b36b714881f9",
			number: 654360564,
			header: "4200bff4",
			plain:  "01",
			sealed: "655e5cd55c41f69080575d7999c25a5bfb",
			sample: "5e5cd55c41f69080575d7999c25a5bfb",
			mask:   "aefefe7d03",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := suites[c.suite]
			secret := unhex(t, c.secret)
			expand := func(label string, length int) []byte {
				out, err := s.expandLabel(secret, label, length)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			equal := func(what string, got []byte, want string) {
				if hex.EncodeToString(got) != want {
					t.Errorf("%s: got %x, want %s", what, got, want)
				}
			}
			key, iv, hp := expand("quic key", s.keyLen), expand("quic iv", ivLen), expand("quic hp", s.keyLen)
			equal("key", key, c.key)
			equal("iv", iv, c.iv)
			equal("hp", hp, c.hp)
			if c.ku != "" {
				equal("ku", expand("quic ku", s.hashLen), c.ku)
			}
			k := &keys{iv: [ivLen]byte(iv)}
			var err error
			if k.aead, err = s.aead(key); err != nil {
				t.Fatal(err)
			}
			sealed := k.aead.Seal(nil, k.nonceOf(c.number), unhex(t, c.plain), unhex(t, c.header))
			equal("sealed", sealed, c.sealed)
			p, err := s.protector(hp)
			if err != nil {
				t.Fatal(err)
			}
			mask := p.mask((*[sampleLen]byte)(unhex(t, c.sample)))
			equal("mask", mask[:], c.mask)
		})
	}
}

// A sealed packet, so that a change of the layout, the labels or the key schedule shows.
func TestSealedPacketsAreGolden(t *testing.T) {
	for suite, want := range map[uint16]string{
		tls.TLS_AES_128_GCM_SHA256:       goldenAES128,
		tls.TLS_AES_256_GCM_SHA384:       goldenAES256,
		tls.TLS_CHACHA20_POLY1305_SHA256: goldenChaCha,
	} {
		s, _, err := New(suite, bytes.Repeat([]byte{7}, SecretLen), true, ConnectionID{0: 1, 16: 2})
		if err != nil {
			t.Fatal(err)
		}
		s.number = 1<<33 + 5
		packet, _, err := s.Seal(nil, 0x01020304, []byte{byte(FrameDatagram)}, []byte("bundle"))
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(packet); got != want {
			t.Errorf("%s: got %s, want %s", tls.CipherSuiteName(suite), got, want)
		}
	}
}

const (
	goldenAES128 = "4701000000000000000000000000000000021c0c1855e380d18fe4f06995dae6d8ef66217f75082e31d341860bae0afa85"
	goldenAES256 = "5a0100000000000000000000000000000002b4a7d2bfeae037c23553792ecf5f052ef03e7f2156447d6f97399cec2f2760"
	goldenChaCha = "490100000000000000000000000000000002726df973032d361cb080273cfe69a7949443a75396ff9bce54003fed5621a4"
)
