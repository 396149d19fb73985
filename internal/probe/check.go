package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"wmproxy/socks"
)

// Defaults of Config.
const (
	defaultDNS      = "8.8.8.8:53"
	defaultDomain   = "example.com"
	defaultTimeout  = 10 * time.Second
	defaultAttempts = 3
	defaultInterval = 1500 * time.Millisecond
)

// Config is the configuration of Check.
type Config struct {
	Socks              string // HOST:PORT of the SOCKS5 server
	Username, Password string // up to 255 bytes each; both empty for no authentication

	DNS    string     // HOST:PORT of a DNS server; "" means 8.8.8.8:53
	Domain string     // the name to look up; "" means example.com
	Expect netip.Addr // its expected address; invalid to accept any
	Echo   string     // HOST:PORT of an echo on UDP and TCP, to use instead of DNS

	Timeout  time.Duration // of each handshake and each answer over TCP; 0 means 10 s
	Attempts int           // datagrams to send before giving up; 0 means 3
	Interval time.Duration // between datagrams; 0 means 1.5 s
}

// Validate returns an error if Check cannot start with c.
func (c Config) Validate() error {
	_, err := newChecker(c, io.Discard)
	return err
}

// Payloads that Check sends to an echo, in bytes. The datagram is small enough for any
// path.
const (
	echoDatagramBytes = 64
	echoStreamBytes   = 4096
)

// checker runs the two checks and prints their steps.
type checker struct {
	Config
	socksAddr socks.Addr
	target    socks.Addr
	out       io.Writer
	last      time.Time // when the previous step ended

	// refusal is the reply code of CONNECT, 0 if it succeeded. It helps to explain lost
	// datagrams too, which get no reply code.
	refusal byte
}

func newChecker(cfg Config, out io.Writer) (*checker, error) {
	c := &checker{Config: cfg, out: out}
	if c.DNS == "" {
		c.DNS = defaultDNS
	}
	if c.Domain == "" {
		c.Domain = defaultDomain
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.Attempts <= 0 {
		c.Attempts = defaultAttempts
	}
	if c.Interval <= 0 {
		c.Interval = defaultInterval
	}
	var err error
	if c.socksAddr, err = ParseTarget(c.Socks); err != nil {
		return nil, fmt.Errorf("the SOCKS5 server's address: %w", err)
	}
	if len(c.Username) > 255 || len(c.Password) > 255 {
		return nil, errors.New("SOCKS5 allows at most 255 bytes of user name and of password")
	}
	target := c.DNS
	if c.Echo != "" {
		target = c.Echo
	}
	if c.target, err = ParseTarget(target); err != nil {
		return nil, fmt.Errorf("the target's address: %w", err)
	}
	if _, ok := dns.IsDomainName(c.Domain); !ok {
		return nil, fmt.Errorf("%q is not a domain name", c.Domain)
	}
	return c, nil
}

// Check tries CONNECT and UDP ASSOCIATE through a SOCKS5 server, each with one DNS
// query or echo. It prints every step with its time, then "TCP: OK" and "UDP: OK" or
// the step that failed, the likely cause and advice, and reports whether both passed.
// It takes at most four Timeouts and Attempts+1 Intervals.
func Check(ctx context.Context, cfg Config, out io.Writer) (ok bool) {
	c, err := newChecker(cfg, out)
	if err != nil {
		fmt.Fprintf(out, "Cannot start: %v.\n", err)
		return false
	}
	// A bound for the sum of the waits, each of which has its own.
	ctx, cancel := context.WithTimeout(ctx, 4*c.Timeout+time.Duration(c.Attempts+1)*c.Interval)
	defer cancel()
	tcp := c.verdict("TCP", c.checkTCP(ctx))
	udp := c.verdict("UDP", c.checkUDP(ctx))
	return tcp && udp
}

func (c *checker) verdict(protocol string, failed *failure) bool {
	if failed == nil {
		fmt.Fprintf(c.out, "%s: OK\n", protocol)
		return true
	}
	fmt.Fprintf(c.out, "%s: FAILED at %s: %s.\n", protocol, failed.step, failed.sentence)
	return false
}

func (c *checker) begin(request string) {
	fmt.Fprintf(c.out, "%s to %s through %s\n", request, visible(c.target), visible(c.socksAddr))
	c.last = time.Now()
}

// step prints a step that succeeded, with the time since the one before it.
func (c *checker) step(name, detail string) {
	now := time.Now()
	fmt.Fprintf(c.out, "  %10s  %s", milliseconds(max(now.Sub(c.last), 1)), name)
	if detail != "" {
		fmt.Fprintf(c.out, ": %s", detail)
	}
	fmt.Fprintln(c.out)
	c.last = now
}

func (c *checker) hint(format string, args ...any) {
	fmt.Fprintf(c.out, "  hint: "+format+".\n", args...)
}

// client returns a client that prints its steps. request is the command of the last one.
func (c *checker) client(request string) *socks.Client {
	return &socks.Client{
		Server:   c.Socks,
		Username: c.Username,
		Password: c.Password,
		Timeout:  c.Timeout,
		OnStep: func(s socks.Step, bound socks.Addr) {
			switch s {
			case socks.StepDial:
				c.step("dial", "connected to "+visible(c.socksAddr))
			case socks.StepGreeting:
				c.step("greeting", "it speaks SOCKS5")
			case socks.StepAuth:
				c.step("authentication", "accepted")
			case socks.StepReply:
				c.step(request+" reply", "BND "+visible(bound))
			}
		},
	}
}

func (c *checker) checkTCP(ctx context.Context) *failure {
	c.begin("TCP CONNECT")
	conn, err := c.client("CONNECT").Connect(ctx, c.target)
	if err != nil {
		return c.handshakeFailure("CONNECT", err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	if c.Echo != "" {
		if err := thereAndBack(ctx, conn, echoStreamBytes); err != nil {
			return c.answerFailure("echo", err)
		}
		c.step("echo", fmt.Sprintf("%d bytes and the end came back", echoStreamBytes))
		return nil
	}
	ips, err := askOverTCP(ctx, conn, newQuestion(c.Domain, c.Expect))
	if err != nil {
		return c.answerFailure("DNS answer", err)
	}
	c.step("DNS answer", c.answerText(ips))
	return nil
}

func (c *checker) answerText(ips []netip.Addr) string {
	return fmt.Sprintf("%s is %v", c.Domain, ips)
}

// askOverTCP sends one query and reads its answer. It closes conn.
func askOverTCP(ctx context.Context, conn net.Conn, q question) ([]netip.Addr, error) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	ips, err := func() ([]netip.Addr, error) {
		framed := &dns.Conn{Conn: conn}
		if err := framed.WriteMsg(q.query); err != nil {
			return nil, err
		}
		b, err := framed.ReadMsgHeader(nil)
		if err != nil {
			return nil, err
		}
		var m dns.Msg
		if err := m.Unpack(b); err != nil {
			return nil, fmt.Errorf("%w (%v)", errNotDNS, err)
		}
		ips, ours, err := q.judge(&m)
		if !ours {
			return nil, fmt.Errorf("%w to this query", errNotDNS)
		}
		return ips, err
	}()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return ips, err
}

func (c *checker) checkUDP(ctx context.Context) *failure {
	c.begin("UDP ASSOCIATE")
	conn, err := c.client("ASSOCIATE").Associate(ctx)
	if err != nil {
		return c.handshakeFailure("ASSOCIATE", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	c.hintAboutBound(conn)

	datagram, judge, err := c.datagram()
	if err != nil {
		return c.answerFailure("query", err)
	}
	for n := 1; n <= c.Attempts; n++ {
		conn.SetDeadline(time.Now().Add(c.Interval))
		if _, err := conn.WriteToAddr(datagram, c.target); err != nil {
			return c.sendFailure(ctx, conn, err)
		}
		c.step(fmt.Sprintf("datagram %d of %d sent", n, c.Attempts),
			fmt.Sprintf("%d bytes by way of %s", len(datagram), conn.RelayAddr()))
		failed, answered := c.awaitDatagram(ctx, conn, judge)
		if failed != nil || answered {
			return failed
		}
	}
	return c.noReplyFailure(ctx, conn)
}

// datagram returns the payload to send over UDP, and a function that judges a payload
// that arrives: it returns the text to print and whether that is an answer to this one.
func (c *checker) datagram() ([]byte, func([]byte) (string, bool, error), error) {
	if c.Echo != "" {
		sent := make([]byte, echoDatagramBytes)
		rand.Read(sent)
		return sent, func(got []byte) (string, bool, error) {
			// The first bytes show whether it is an echo, which may have changed, or not.
			ours := len(got) >= pingSeqLen && bytes.Equal(got[:pingSeqLen], sent[:pingSeqLen])
			if ours && !bytes.Equal(got, sent) {
				return "", true, fmt.Errorf("%w: %d bytes came back for %d", errChanged, len(got), len(sent))
			}
			return fmt.Sprintf("echo: %d bytes unchanged", len(got)), ours, nil
		}, nil
	}
	q := newQuestion(c.Domain, c.Expect)
	query, err := q.query.Pack()
	return query, func(got []byte) (string, bool, error) {
		var m dns.Msg
		if m.Unpack(got) != nil {
			return "", false, nil
		}
		ips, ours, err := q.judge(&m)
		return "DNS answer: " + c.answerText(ips), ours, err
	}, err
}

// awaitDatagram reads until the answer arrives or the deadline passes, which is no
// failure.
func (c *checker) awaitDatagram(ctx context.Context, conn *socks.PacketConn, judge func([]byte) (string, bool, error)) (failed *failure, answered bool) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromAddr(buf)
		switch {
		case timedOut(err):
			return nil, false
		case err != nil:
			return c.receiveFailure(ctx, err), false
		}
		text, ours, err := judge(buf[:n])
		if !ours {
			continue
		}
		c.step("reply", fmt.Sprintf("%d bytes from %s", n, visible(from)))
		if err != nil {
			return c.answerFailure("reply", err), false
		}
		if c.target.IP.IsValid() && from != c.target {
			return c.namedSourceFailure(from), false
		}
		c.step(text, "")
		return nil, true
	}
}

// refusedPayload is dropped by every server: it has a FRAG of 1 and no address.
var refusedPayload = []byte{0, 0, 1}

// refused reports whether the relay's address answers with ICMP "port unreachable". It
// needs a socket of its own, because the association's is unconnected and so gets no
// such error.
func refused(relay netip.AddrPort, wait time.Duration) bool {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(relay))
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(wait))
	if _, err := conn.Write(refusedPayload); err != nil {
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	_, err = conn.Read(make([]byte, 1))
	return errors.Is(err, syscall.ECONNREFUSED)
}
