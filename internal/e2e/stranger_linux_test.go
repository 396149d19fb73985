package e2e

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"wmproxy/internal/link"
	"wmproxy/internal/netlab"
)

// Strangers flood the server's port with halves of a ClientHello from many addresses, in a
// process of their own on a host beside the server.

const (
	// strangerVariable makes a process that of the strangers: KIND TARGET RATE TIME.
	strangerVariable = "WMPROXY_E2E_STRANGER"

	// strangers4 is the number of their IPv4 addresses, each in a /24 of its own.
	strangers4 = 57

	// keptOpen bounds the TCP connections that they keep open.
	keptOpen = 4096
)

// Networks of the strangers.
var (
	strangers4Network = netip.MustParsePrefix("198.18.0.0/16")
	strangers6Network = netip.MustParsePrefix("2001:db8:bad::/49")
)

// TestAsTheStranger is the strangers' process. In the process of the tests it does nothing.
func TestAsTheStranger(t *testing.T) {
	text := os.Getenv(strangerVariable)
	if text == "" {
		return
	}
	var kind, target, lasts string
	var rate int
	if _, err := fmt.Sscan(text, &kind, &target, &rate, &lasts); err != nil {
		t.Fatal(err)
	}
	to := netip.MustParseAddrPort(target)
	d, err := time.ParseDuration(lasts)
	if err != nil {
		t.Fatal(err)
	}
	hello := clientHello(t)
	flood := floodTCP
	if kind == overQUIC {
		flood = floodQUIC
	}
	fmt.Println("begin")
	began := time.Now()
	n, err := flood(to, hello, rate, d)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%d attempts in %v\n", n, time.Since(began).Round(time.Millisecond))
}

// strangers is their process.
type strangers struct {
	t   testing.TB
	cmd *exec.Cmd
	out *output
}

// startStrangers starts a flood of a server and returns once it has begun.
func startStrangers(t testing.TB, h *netlab.Host, kind string, to netip.AddrPort, rate int, lasts time.Duration) *strangers {
	t.Helper()
	s := &strangers{t: t, cmd: exec.Command(os.Args[0], "-test.run=^TestAsTheStranger$"), out: newOutput()}
	s.cmd.Env = environment(t, programVariable+"="+program, fmt.Sprintf("%s=%s %v %d %v", strangerVariable, kind, to, rate, lasts))
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := h.In(s.cmd.Start); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(waitTimeout)
	for {
		text, more := s.out.read()
		if strings.Contains(text, "begin\n") {
			return s
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("the strangers do not begin: %s", text)
		}
	}
}

// wait waits for the strangers' end and returns their report.
func (s *strangers) wait() string {
	s.t.Helper()
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("the strangers: %v\n%s", err, s.out)
	}
	_, text, _ := strings.Cut(s.out.String(), "begin\n")
	text, _, _ = strings.Cut(text, "PASS")
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", ", ")
}

// attachOnce attaches to a server as a new client from a host, and leaves.
func attachOnce(t testing.TB, h *netlab.Host, kind string, to netip.AddrPort, l link.Link) error {
	ctx, cancel := context.WithTimeout(t.Context(), handshakeBound)
	defer cancel()
	c := &connection{t: t, kind: 2}
	if kind == overQUIC {
		var socket net.PacketConn
		err := h.In(func() (err error) {
			socket, err = net.ListenPacket("udp4", ":0")
			return err
		})
		if err != nil {
			return err
		}
		defer socket.Close()
		tr := &quic.Transport{Conn: socket}
		defer tr.Close()
		conn, err := tr.Dial(ctx, net.UDPAddrFromAddrPort(to), wireTLS(wireALPN), &quic.Config{EnableDatagrams: true, HandshakeIdleTimeout: handshakeBound})
		if err != nil {
			return err
		}
		defer conn.CloseWithError(0, "")
		state := conn.ConnectionState().TLS
		c.kind = 1
		c.exporter = func() ([]byte, error) { return state.ExportKeyingMaterial("EXPORTER-wmproxy-attach", nil, 32) }
		s, err := conn.OpenStream()
		if err != nil {
			return err
		}
		_ = s.SetDeadline(time.Now().Add(handshakeBound))
		c.stream = s
	} else {
		var raw net.Conn
		err := h.In(func() (err error) {
			raw, err = new(net.Dialer).DialContext(ctx, "tcp4", to.String())
			return err
		})
		if err != nil {
			return err
		}
		defer raw.Close()
		conn := tls.Client(raw, wireTLS(wireALPN))
		if err := conn.HandshakeContext(ctx); err != nil {
			return err
		}
		_ = conn.SetDeadline(time.Now().Add(handshakeBound))
		state := conn.ConnectionState()
		c.exporter = func() ([]byte, error) { return state.ExportKeyingMaterial("EXPORTER-wmproxy-attach", nil, 32) }
		c.stream = conn
	}
	if _, err := c.stream.Write(c.hello(l, newWireSession(), wireHello{attach: 1, withSecret: true})); err != nil {
		return err
	}
	answer, payload, err := readWire(c.stream)
	if err == nil && answer != typeWelcome {
		err = fmt.Errorf("a message of type %d: %q", answer, payload)
	}
	return err
}

// attaches are the attempts of honest clients, by transport.
type attaches struct {
	mu     sync.Mutex
	took   map[string][]time.Duration // of those that succeeded
	failed map[string][]error
}

// try makes one attempt.
func (a *attaches) try(t testing.TB, h *netlab.Host, kind string, to netip.AddrPort, l link.Link) {
	began := time.Now()
	err := attachOnce(t, h, kind, to, l)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.failed[kind] = append(a.failed[kind], err)
	} else {
		a.took[kind] = append(a.took[kind], time.Since(began))
	}
}

// report prints the attempts of one transport and returns the share that succeeded.
func (a *attaches) report(t testing.TB, kind string) float64 {
	t.Helper()
	took, failed := a.took[kind], a.failed[kind]
	share := float64(len(took)) / float64(max(1, len(took)+len(failed)))
	text := fmt.Sprintf("clients over %s: %d attach, %d do not (%.1f %% succeed)", kind, len(took), len(failed), 100*share)
	if n := len(took); n > 0 {
		slices.Sort(took)
		at := func(i int) time.Duration { return took[i].Round(time.Millisecond) }
		text += fmt.Sprintf("; p50 %v, p90 %v, max %v", at(n/2), at(n*9/10), at(n-1))
	}
	if len(failed) > 0 {
		text += fmt.Sprintf("; the first failed because of %v", failed[0])
	}
	t.Log(text)
	return share
}

// notAccepted returns the number of TCP connections that a host's full queues have refused.
func notAccepted(t testing.TB, h *netlab.Host) (n int) {
	t.Helper()
	var names []string
	for line := range strings.Lines(h.Run("", "cat", "/proc/net/netstat")) {
		fields := strings.Fields(line)
		if fields[0] != "TcpExt:" {
			continue
		}
		if i := slices.Index(names, "ListenOverflows"); i >= 0 {
			n, _ = strconv.Atoi(fields[i])
			return n
		}
		names = fields
	}
	t.Fatal("the system does not count full queues")
	return 0
}

func TestInTheLabStrangersDoNotLockClientsOut(t *testing.T) {
	const (
		lasts = 6 * time.Second
		every = 75 * time.Millisecond // between attempts of clients, over both transports in turn
		rtt   = 200 * time.Millisecond
		want  = 0.95
	)
	for _, test := range []struct {
		flood string
		from  netip.Prefix
		rate  int // a second
	}{
		{overQUIC, strangers6Network, 1400},
		{overYamux, strangers4Network, 7800},
	} {
		t.Run(test.flood, func(t *testing.T) {
			l := &lab{Net: newNet(t, netlab.Config{Path: netlab.Symmetric(netlab.Path{Delay: rtt / 2})}), t: t}
			s := serverBehind(t, l.launch(l.Servers[0], "server", "--listen", fmt.Sprintf(":%d", labPort), "--state-dir", t.TempDir(), "--hold", "0s"))
			to := netip.AddrPortFrom(netlab.ServerAddr(0), labPort)
			known := parsed(t, s)
			target := to
			if test.from.Addr().Is6() {
				target = netip.AddrPortFrom(netlab.BesideServer, labPort)
			}
			// The race detector makes the server some ten times as slow.
			rate := test.rate / int(raceFactor()*raceFactor())
			flood := startStrangers(t, l.Neighbour(0, test.from), test.flood, target, rate, lasts)
			over := time.Now().Add(lasts)
			during(lasts / 6) // until the server is full
			honest := attaches{took: map[string][]time.Duration{}, failed: map[string][]error{}}
			var wg sync.WaitGroup
			tick := time.NewTicker(every)
			defer tick.Stop()
			for i := 0; time.Now().Before(over); i++ {
				wg.Go(func() { honest.try(t, l.Home, wireKinds[i%len(wireKinds)], to, known) })
				<-tick.C
			}
			wg.Wait()
			turnedAway := notAccepted(t, l.Servers[0])
			t.Logf("strangers over %s: %s; the system turned %d connections away", test.flood, flood.wait(), turnedAway)
			for _, kind := range wireKinds {
				switch share := honest.report(t, kind); {
				case share >= want:
				case turnedAway > int(float64(rate)*lasts.Seconds()/10):
					t.Logf("the server had no time to take all connections: no verdict on %s", kind)
				default:
					t.Errorf("%.1f %% of clients attach over %s, want %.0f %%", 100*share, kind, 100*want)
				}
			}
		})
	}
}

// paced calls once with rising numbers, rate times a second for this time, and returns the number
// of calls.
func paced(rate int, lasts time.Duration, once func(i int) error) (n int, err error) {
	began := time.Now()
	for time.Since(began) < lasts {
		for due := int(time.Since(began).Seconds() * float64(rate)); n < due; n++ {
			if err := once(n); err != nil {
				return n, err
			}
		}
		time.Sleep(500 * time.Microsecond)
	}
	return n, nil
}

// floodTCP opens connections and sends half a ClientHello on each.
func floodTCP(to netip.AddrPort, hello []byte, rate int, lasts time.Duration) (int, error) {
	const later = 64 // a connection is established after this many others
	half := hello[:len(hello)/2]
	open := make([]int, keptOpen)
	for i := range open {
		open[i] = -1
	}
	defer func() {
		for _, fd := range open {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}()
	return paced(rate, lasts, func(i int) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		slot := &open[i%keptOpen]
		if *slot >= 0 {
			unix.Close(*slot)
		}
		*slot = fd
		from := &unix.SockaddrInet4{Addr: [4]byte{198, 18, byte(i % strangers4), 1}}
		err = errors.Join(
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
			unix.Bind(fd, from),
		)
		if err != nil {
			return err
		}
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		if err != nil && err != unix.EINPROGRESS {
			return err
		}
		if i >= later {
			_, _ = unix.Write(open[(i-later)%keptOpen], half)
		}
		return nil
	})
}

// floodQUIC sends Initial packets with half a ClientHello, each from another /64, and again with
// the token of a Retry.
func floodQUIC(to netip.AddrPort, hello []byte, rate int, lasts time.Duration) (int, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1) })
		return errors.Join(e, err)
	}}
	c, err := lc.ListenPacket(context.Background(), "udp6", "[::]:0")
	if err != nil {
		return 0, err
	}
	defer c.Close()
	socket := ipv6.NewPacketConn(c)
	if err := socket.SetControlMessage(ipv6.FlagDst, true); err != nil {
		return 0, err
	}
	half := hello[5 : 5+(len(hello)-5)/2] // without the header of a TLS record
	remote := net.UDPAddrFromAddrPort(to)
	var tokens int
	var answers sync.WaitGroup
	defer answers.Wait()
	answers.Go(func() {
		b := make([]byte, 2048)
		for {
			n, cm, _, err := socket.ReadFrom(b)
			if err != nil {
				return
			}
			if id, token, ok := parseRetry(b[:n]); ok {
				tokens++
				_, _ = socket.WriteTo(sealInitial(id, token, half), &ipv6.ControlMessage{Src: cm.Dst}, remote)
			}
		}
	})
	n, err := paced(rate, lasts, func(i int) error {
		from := strangers6Network.Addr().As16()
		binary.BigEndian.PutUint16(from[6:], uint16(i*101)&0x7fff) // one of its 32,768 /64
		from[15] = 1
		_, err := socket.WriteTo(sealInitial(garbage(8), nil, half), &ipv6.ControlMessage{Src: from[:]}, remote)
		return err
	})
	c.Close()
	answers.Wait()
	fmt.Printf("%d of a Retry\n", tokens)
	return n, err
}

// parseRetry returns the connection id and the token of a Retry (RFC 9000 section 17.2.5).
func parseRetry(b []byte) (id, token []byte, ok bool) {
	const tag = 16
	if len(b) < 7+tag || b[0]>>4 != 0xf {
		return nil, nil, false
	}
	rest := b[5:]
	for range 2 { // the destination's and the source's connection id
		n := int(rest[0])
		if len(rest) < 1+n+1+tag {
			return nil, nil, false
		}
		id, rest = rest[1:1+n], rest[1+n:]
	}
	return id, rest[:len(rest)-tag], true
}

// sealInitial returns a client's Initial packet of 1,200 bytes with a CRYPTO frame that
// begins with these bytes of a ClientHello (RFC 9001 section 5.2).
func sealInitial(id, token, hello []byte) []byte {
	const size, numberLen, tag = 1200, 4, 16
	b := binary.BigEndian.AppendUint32([]byte{0xc0 | numberLen - 1}, 1)
	b = append(append(b, byte(len(id))), id...)
	b = append(b, 0) // no connection id of ours
	b = append(binary.BigEndian.AppendUint16(b, 1<<14|uint16(len(token))), token...)
	b = binary.BigEndian.AppendUint16(b, 1<<14|uint16(size-len(b)-2))
	b = append(b, make([]byte, numberLen)...)
	plain := make([]byte, size-len(b)-tag) // the rest is PADDING
	copy(plain, append(binary.BigEndian.AppendUint16([]byte{6, 0}, 1<<14|uint16(len(hello))), hello...))

	salt := []byte{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a}
	initial, err := hkdf.Extract(sha256.New, id, salt)
	if err != nil {
		panic(err)
	}
	client := expandLabel(initial, "client in", 32)
	aead, err := cipher.NewGCM(block(expandLabel(client, "quic key", 16)))
	if err != nil {
		panic(err)
	}
	sealed := aead.Seal(b, expandLabel(client, "quic iv", 12), plain, b) // packet number 0
	var mask [16]byte
	number := sealed[len(b)-numberLen:]
	block(expandLabel(client, "quic hp", 16)).Encrypt(mask[:], number[4:20])
	sealed[0] ^= mask[0] & 0x0f
	for i := range numberLen {
		number[i] ^= mask[1+i]
	}
	return sealed
}

// expandLabel is HKDF-Expand-Label (RFC 8446 section 7.1) without a context.
func expandLabel(secret []byte, label string, n int) []byte {
	label = "tls13 " + label
	info := append([]byte{0, byte(n), byte(len(label))}, label...)
	out, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
	if err != nil {
		panic(err)
	}
	return out
}

func block(key []byte) cipher.Block {
	c, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	return c
}
