package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"wmproxy/socks"
)

// Errors of a look-up.
var (
	errNoRecord   = errors.New("the DNS server knows no A record")
	errUnexpected = errors.New("the answer is not the expected address")
	errNotDNS     = errors.New("the reply is not a DNS answer")
)

// question is a query for the A records of a name.
type question struct {
	query  *dns.Msg
	expect netip.Addr // invalid to accept any
}

func newQuestion(domain string, expect netip.Addr) question {
	return question{new(dns.Msg).SetQuestion(dns.Fqdn(domain), dns.TypeA), expect.Unmap()}
}

// judge returns the addresses in an answer. ours is false if m does not answer this
// question.
func (q question) judge(m *dns.Msg) (ips []netip.Addr, ours bool, err error) {
	asked := q.query.Question[0]
	if m.Id != q.query.Id || !m.Response || len(m.Question) != 1 ||
		dns.CanonicalName(m.Question[0].Name) != dns.CanonicalName(asked.Name) || m.Question[0].Qtype != asked.Qtype {
		return nil, false, nil
	}
	if m.Rcode != dns.RcodeSuccess {
		return nil, true, fmt.Errorf("%w of %s (%s)", errNoRecord, asked.Name, dns.RcodeToString[m.Rcode])
	}
	expected := !q.expect.IsValid()
	for _, rr := range m.Answer {
		a, ok := rr.(*dns.A)
		if !ok {
			continue
		}
		if ip, ok := netip.AddrFromSlice(a.A); ok {
			ips = append(ips, ip.Unmap())
			expected = expected || ip.Unmap() == q.expect
		}
	}
	if len(ips) == 0 {
		return nil, true, fmt.Errorf("%w of %s", errNoRecord, asked.Name)
	}
	if !expected {
		return ips, true, fmt.Errorf("%w: %v instead of %v", errUnexpected, ips, q.expect)
	}
	return ips, true, nil
}

// LookupResult is the outcome of a look-up.
type LookupResult struct {
	Addrs []netip.Addr
	RTT   time.Duration // of the attempt that was answered
	Err   error
}

const (
	lookupAttempts = 3
	lookupWait     = time.Second // after each attempt
)

// lookup asks a DNS server for the A records of domain through an association of its
// own. If expect is valid, an answer without it is errUnexpected.
func lookup(ctx context.Context, client *socks.Client, server socks.Addr, domain string, expect netip.Addr) LookupResult {
	conn, err := client.Associate(ctx)
	if err != nil {
		return LookupResult{Err: err}
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	q := newQuestion(domain, expect)
	for range lookupAttempts {
		start := time.Now()
		ips, err := q.ask(conn, server, start.Add(lookupWait))
		switch {
		case ctx.Err() != nil:
			return LookupResult{Err: context.Cause(ctx)}
		case !timedOut(err):
			return LookupResult{Addrs: ips, RTT: time.Since(start), Err: err}
		}
	}
	return LookupResult{Err: fmt.Errorf("%w from %s to %d queries", ErrNoReply, visible(server), lookupAttempts)}
}

// ask sends the question once and returns the answer.
func (q question) ask(conn *socks.PacketConn, server socks.Addr, deadline time.Time) ([]netip.Addr, error) {
	query, err := q.query.Pack()
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(deadline)
	if _, err := conn.WriteToAddr(query, server); err != nil {
		return nil, err
	}
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, _, err := conn.ReadFromAddr(buf)
		if err != nil {
			return nil, err
		}
		var m dns.Msg
		if m.Unpack(buf[:n]) != nil {
			continue
		}
		if ips, ours, err := q.judge(&m); ours {
			return ips, err
		}
	}
}
