package probe

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"

	"wmproxy/socks"
)

const (
	// dnsTTL is the TTL of every answer in seconds. It is short, because another process
	// may answer next.
	dnsTTL = 30
	// maxDNSConns bounds the TCP connections. More wait to be accepted.
	maxDNSConns = 64
	// dnsIdle is the time after which an unused TCP connection is closed.
	dnsIdle = 10 * time.Second
)

// Records are the records of a name. A text has at most 255 bytes.
type Records struct {
	A, AAAA []netip.Addr
	TXT     []string
}

// DNS is a small authoritative DNS server for fixed names, on UDP and TCP.
type DNS struct {
	addr    socks.Addr
	names   map[string]Records
	servers []*dns.Server
	wg      sync.WaitGroup
}

// ListenDNS starts a DNS server on addr, HOST:PORT, that knows these names alone. The
// system chooses the port if it is 0.
func ListenDNS(addr string, names map[string]Records) (*DNS, error) {
	udp, tcp, err := listenBoth(addr)
	if err != nil {
		return nil, err
	}
	d := &DNS{addr: socks.AddrFrom(udp.LocalAddr().(*net.UDPAddr).AddrPort()), names: make(map[string]Records, len(names))}
	for name, records := range names {
		d.names[dns.CanonicalName(name)] = records
	}
	d.servers = []*dns.Server{{PacketConn: udp}, {Listener: netutil.LimitListener(tcp, maxDNSConns)}}
	failed := make(chan error, len(d.servers))
	started := make(chan struct{}, len(d.servers))
	for _, s := range d.servers {
		s.Handler = dns.HandlerFunc(d.answer)
		s.IdleTimeout = func() time.Duration { return dnsIdle }
		s.NotifyStartedFunc = func() { started <- struct{}{} }
		d.wg.Go(func() {
			if err := s.ActivateAndServe(); err != nil {
				failed <- err
			}
		})
	}
	// Shutdown works on started servers only.
	for range d.servers {
		select {
		case <-started:
		case err := <-failed:
			udp.Close()
			tcp.Close()
			d.wg.Wait()
			return nil, err
		}
	}
	return d, nil
}

// Addr returns the server's address.
func (d *DNS) Addr() socks.Addr { return d.addr }

// Close stops the server and waits for the queries in progress. It must be called
// only once.
func (d *DNS) Close() error {
	var errs []error
	for _, s := range d.servers {
		errs = append(errs, s.Shutdown())
	}
	d.wg.Wait()
	return errors.Join(errs...)
}

func (d *DNS) answer(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg).SetReply(query)
	reply.Authoritative = true
	limit := dns.MaxMsgSize
	if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
		limit = dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			limit = int(opt.UDPSize())
			reply.SetEdns0(dns.DefaultMsgSize, false)
		}
	}
	d.fill(reply)
	reply.Truncate(limit)
	_ = w.WriteMsg(reply) // the client asks again if it fails
}

// fill adds the answer to the question in m.
func (d *DNS) fill(m *dns.Msg) {
	if len(m.Question) != 1 || m.Question[0].Qclass != dns.ClassINET {
		m.Rcode = dns.RcodeRefused
		return
	}
	question := m.Question[0]
	records, ok := d.names[dns.CanonicalName(question.Name)]
	if !ok {
		m.Rcode = dns.RcodeNameError
		return
	}
	header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: dnsTTL}
	switch question.Qtype {
	case dns.TypeA:
		for _, ip := range records.A {
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: ip.AsSlice()})
		}
	case dns.TypeAAAA:
		for _, ip := range records.AAAA {
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: ip.AsSlice()})
		}
	case dns.TypeTXT:
		for _, text := range records.TXT {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: header, Txt: []string{text}})
		}
	}
}
