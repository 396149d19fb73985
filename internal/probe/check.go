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
	DefaultDNS      = "8.8.8.8:53"
	DefaultDomain   = "example.com"
	DefaultTimeout  = 10 * time.Second
	DefaultAttempts = 3
	DefaultInterval = 1500 * time.Millisecond
)

// Config says what Check checks.
type Config struct {
	Socks              string // the SOCKS5 server, HOST:PORT
	Username, Password string // up to 255 bytes each; both empty: no authentication

	DNS    string     // a DNS server, HOST:PORT; empty: DefaultDNS
	Domain string     // whose A record is asked for; empty: DefaultDomain
	Expect netip.Addr // what it must be; invalid: any will do
	Echo   string     // an echo on UDP and TCP, HOST:PORT, to use in place of DNS

	Timeout  time.Duration // for each handshake and each answer over TCP; 0: DefaultTimeout
	Attempts int           // datagrams sent before there is "no reply"; 0: DefaultAttempts
	Interval time.Duration // between them; 0: DefaultInterval
}

// Validate says what is wrong with c, in a sentence, before anything is tried.
func (c Config) Validate() error {
	_, err := newChecker(c, io.Discard)
	return err
}

// echoBytes is what Check sends to an echo: over UDP small enough for any path.
const (
	echoDatagramBytes = 64
	echoStreamBytes   = 4096
)

// errReplyForm is a datagram from the server that is none of SOCKS5's.
var errReplyForm = errors.New("malformed or fragmented reply")

// checker runs the two checks and prints as it goes.
type checker struct {
	Config
	socksAddr socks.Addr
	target    socks.Addr
	out       io.Writer
	last      time.Time // when the previous step ended

	// refusal is the reply code that CONNECT got, 0 if it was let through. Datagrams
	// get no reply code, so that it stands for them too.
	refusal byte
}

func newChecker(cfg Config, out io.Writer) (*checker, error) {
	c := &checker{Config: cfg, out: out}
	if c.DNS == "" {
		c.DNS = DefaultDNS
	}
	if c.Domain == "" {
		c.Domain = DefaultDomain
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Attempts <= 0 {
		c.Attempts = DefaultAttempts
	}
	if c.Interval <= 0 {
		c.Interval = DefaultInterval
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

// Check tries TCP CONNECT and UDP ASSOCIATE through a SOCKS5 server, each with
// one DNS query or echo, and prints every step with its time, then "TCP: OK" and
// "UDP: OK" or the step that failed, the likely cause and what to do. It takes
// at most four Timeouts and Attempts+1 Intervals. ok means that both passed.
func Check(ctx context.Context, cfg Config, out io.Writer) (ok bool) {
	c, err := newChecker(cfg, out)
	if err != nil {
		fmt.Fprintf(out, "Cannot start: %v.\n", err)
		return false
	}
	// Each wait has its own bound; this one holds whatever those add up to.
	ctx, cancel := context.WithTimeout(ctx, 4*c.Timeout+time.Duration(c.Attempts+1)*c.Interval)
	defer cancel()
	tcp := c.verdict("TCP", c.checkTCP(ctx))
	udp := c.verdict("UDP", c.checkUDP(ctx))
	return tcp && udp
}

func (c *checker) verdict(what string, failed *failure) bool {
	if failed == nil {
		fmt.Fprintf(c.out, "%s: OK\n", what)
		return true
	}
	fmt.Fprintf(c.out, "%s: FAILED at %s: %s.\n", what, failed.step, failed.sentence)
	return false
}

func (c *checker) begin(what string) {
	fmt.Fprintf(c.out, "%s to %s through %s\n", what, visible(c.target), visible(c.socksAddr))
	c.last = time.Now()
}

// step prints one that was passed, with the time since the one before it.
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

// client prints its steps; request names the last one's command.
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
			return nil, fmt.Errorf("%w (%v)", ErrNotDNS, err)
		}
		ips, ours, err := q.judge(&m)
		if !ours {
			return nil, fmt.Errorf("%w to this query", ErrNotDNS)
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

// datagram is what to send over UDP, and the judge of what comes back: the text
// to print, and whether it answers this datagram at all.
func (c *checker) datagram() ([]byte, func([]byte) (string, bool, error), error) {
	if c.Echo != "" {
		sent := make([]byte, echoDatagramBytes)
		rand.Read(sent)
		return sent, func(got []byte) (string, bool, error) {
			// The first bytes tell a changed echo from something else.
			ours := len(got) >= pingSeqLen && bytes.Equal(got[:pingSeqLen], sent[:pingSeqLen])
			if ours && !bytes.Equal(got, sent) {
				return "", true, fmt.Errorf("%w: %d bytes came back for %d", ErrChanged, len(got), len(sent))
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

// awaitDatagram reads until the answer or the deadline, at which it returns
// neither.
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

// refusedPayload is dropped by every server: a FRAG of 1 and no address.
var refusedPayload = []byte{0, 0, 1}

// refused asks the system whether the relay's address answers with ICMP "port
// unreachable". The association's own socket, being unconnected, is not told.
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
