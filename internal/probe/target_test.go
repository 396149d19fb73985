package probe

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestTheEchoReturnsDatagramsOfAnySize(t *testing.T) {
	echo := startEcho(t)
	conn, err := net.Dial("udp", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 1<<16)
	for _, size := range []int{0, 1, 1472, 9000, MaxDatagram} {
		sent := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := conn.Write(sent); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf); err != nil || !bytes.Equal(buf[:n], sent) {
			t.Errorf("%d bytes: %d came back, %v", size, n, err)
		}
	}
}

func TestTheEchoEndsAStreamOnlyAfterItsEnd(t *testing.T) {
	echo := startEcho(t)
	conn, err := net.Dial("tcp", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 8)
	for _, word := range []string{"one", "two"} {
		conn.Write([]byte(word))
		if n, err := io.ReadFull(conn, buf[:3]); err != nil || string(buf[:n]) != word {
			t.Fatalf("%q came back, %v", buf[:n], err)
		}
	}
	conn.(*net.TCPConn).CloseWrite()
	if n, err := conn.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
}

func TestClosingTheEchoEndsItsConnections(t *testing.T) {
	echo, err := ListenEcho("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	conn.Write([]byte("x"))
	io.ReadFull(conn, make([]byte, 1)) // it is being served
	if err := echo.Close(); err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || timedOut(err) {
		t.Errorf("read after Close: %v", err)
	}
}

func TestTheDNSServerAnswersItsNamesOverUDPAndTCP(t *testing.T) {
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

func TestALongDNSAnswerIsTruncatedWhereItDoesNotFit(t *testing.T) {
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
