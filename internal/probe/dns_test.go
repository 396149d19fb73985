package probe

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestDNSAnswersOverUDPAndTCP(t *testing.T) {
	server := startDNS(t)
	for _, tt := range []struct {
		name   string
		qtype  uint16
		rcode  int
		answer []string // the end of each record
	}{
		{"demo.test.", dns.TypeA, dns.RcodeSuccess, []string{"192.0.2.1", "192.0.2.2"}},
		{"DeMo.TeSt.", dns.TypeAAAA, dns.RcodeSuccess, []string{"2001:db8::1"}},
		{"demo.test.", dns.TypeTXT, dns.RcodeSuccess, []string{`"hello"`}},
		{"demo.test.", dns.TypeMX, dns.RcodeSuccess, nil},
		{"other.test.", dns.TypeA, dns.RcodeNameError, nil},
	} {
		for _, network := range []string{"udp", "tcp"} {
			client := &dns.Client{Net: network, Timeout: 10 * time.Second}
			reply, _, err := client.Exchange(new(dns.Msg).SetQuestion(tt.name, tt.qtype), server.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if reply.Rcode != tt.rcode || len(reply.Answer) != len(tt.answer) {
				t.Errorf("%s %s over %s: %v", tt.name, dns.TypeToString[tt.qtype], network, reply)
				continue
			}
			for i, want := range tt.answer {
				if got := reply.Answer[i].String(); !strings.HasSuffix(got, "\t"+want) {
					t.Errorf("record %q, want %s", got, want)
				}
			}
		}
	}
}

func TestLongDNSAnswerIsTruncatedOverUDP(t *testing.T) {
	server := startDNS(t)
	for _, tt := range []struct {
		network   string
		edns      uint16
		truncated bool
	}{{"udp", 0, true}, {"udp", 1232, false}, {"tcp", 0, false}} {
		query := new(dns.Msg).SetQuestion("big.test.", dns.TypeTXT)
		if tt.edns > 0 {
			query.SetEdns0(tt.edns, false)
		}
		client := &dns.Client{Net: tt.network, Timeout: 10 * time.Second}
		reply, _, err := client.Exchange(query, server.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if reply.Truncated != tt.truncated || !tt.truncated && len(reply.Answer) != 3 {
			t.Errorf("over %s with %d: truncated %v, %d records", tt.network, tt.edns, reply.Truncated, len(reply.Answer))
		}
	}
}
