package egress

import (
	"net/netip"
	"testing"

	"wmproxy/internal/config"
)

// testHost is a host at 203.0.114.7/24, 2a00:1:2:3::7/64 and the loopbacks.
func testHost() *hostAddrs {
	h := &hostAddrs{addrs: make(map[netip.Addr]struct{})}
	for _, s := range []string{"203.0.114.7/24", "2a00:1:2:3::7/64", "127.0.0.1/8", "::1/128"} {
		h.add(netip.MustParsePrefix(s))
	}
	h.prefixes = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	return h
}

// prefixes reads networks as the option does.
func prefixes(texts ...string) []netip.Prefix {
	options := config.DefaultProxy()
	if err := config.Fields(&options)["exit.allow"].Set(texts...); err != nil {
		panic(err)
	}
	return options.Exit.Allow
}

func testPolicy(closed uint16, allow ...string) *policy {
	return denyingPolicy(closed, allow, nil)
}

func denyingPolicy(closed uint16, allow, deny []string) *policy {
	p := newPolicy(prefixes(allow...), prefixes(deny...), func(ap netip.AddrPort) bool { return closed != 0 && ap.Port() == closed })
	p.refresh(testHost())
	return p
}

func TestPolicyOpensOnlyPublicInternet(t *testing.T) {
	p := testPolicy(0)
	for _, s := range []string{
		"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0",
		"126.255.255.255", "128.0.0.0", "169.253.0.1", "172.15.255.255", "172.32.0.0", "192.0.3.1",
		"192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255",
		"203.0.114.8", "2a00:1:2:3::8", "2a00:1:2:4::", "2606:4700:4700::1111", "2001:4860:4860::8888",
		"::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "::8.8.8.8", "2002:808:808::1",
		"161.25.255.255", "161.27.0.0", "166.7.255.255", "166.12.0.0", "168.63.129.15", "168.63.129.17",
		"2001:0:4136:e378:8000:63bf:f7f7:f7f7", // Teredo, server 65.54.227.120, client 8.8.8.8
	} {
		if !p.permits(netip.AddrPortFrom(netip.MustParseAddr(s), 53)) {
			t.Errorf("%s is refused", s)
		}
	}
	for _, s := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255",
		"127.0.0.1", "127.8.9.10", "169.254.169.254", "172.16.0.1", "172.31.255.255",
		"192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255",
		"198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
		"203.0.114.7", "203.0.114.255", "203.0.114.0", // own address and its subnet's broadcasts
		"::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00::1", "ff02::1", "ff0e::1", "100::1",
		"2001:db8::1", "3fff::1", "2001:2::1", "2001:10::1", "2001:20::1", "4000::1", "5f00::1",
		"2a00:1:2:3::7", "2a00:1:2:3::", // own address and its subnet's router anycast
		"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:203.0.114.7", "::ffff:0.0.0.0",
		"64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::203.0.114.7", "64:ff9b::169.254.169.254",
		"64:ff9b:1::8.8.8.8", "64:ff9b:1:a00:1::", "64:ff9b:0:0:0:1::",
		"::127.0.0.1", "::10.0.0.1", "::0.0.0.2",
		"2002:7f00:1::1", "2002:a00:1::", "2002:cb00:7207::1", "2002:c0a8:101::1",
		"168.63.129.16", "161.26.0.10", "166.8.0.1", "166.11.255.255", // clouds' own
		"::ffff:168.63.129.16", "64:ff9b::168.63.129.16", "::168.63.129.16", "2002:a83f:8110::1",
		"2001:0:4136:e378:8000:63bf:57c0:7eef", // Teredo to 168.63.129.16
		"2001:0:a83f:8110:8000:63bf:f7f7:f7f7", // Teredo by way of it
		"2001:0:4136:e378:8000:63bf:80ff:fffe", // Teredo to 127.0.0.1
		"2001:0:a00:1:8000:63bf:f7f7:f7f7",     // Teredo by way of 10.0.0.1
		"2001:0:4136:e378:8000:63bf:34ff:8df8", // Teredo to 203.0.114.7
		"fe80::1%eth0", "2606:4700:4700::1111%eth0", "::ffff:8.8.8.8%lo",
	} {
		if p.permits(netip.AddrPortFrom(netip.MustParseAddr(s), 53)) {
			t.Errorf("%s is open", s)
		}
	}
	if p.permits(netip.AddrPort{}) {
		t.Error("no address at all is open")
	}
}

func TestAllowDoesNotOpenOwnPorts(t *testing.T) {
	const closed = 8090
	tests := []struct {
		name  string
		allow []string
		to    string
		want  bool
	}{
		{"a private subnet", []string{"10.1.0.0/16"}, "10.1.2.3:8090", true},
		{"and no other", []string{"10.1.0.0/16"}, "10.2.2.3:80", false},
		{"its mapped form", []string{"10.1.0.0/16"}, "[::ffff:10.1.2.3]:80", true},
		{"written mapped", []string{"::ffff:10.1.0.0/112"}, "10.1.2.3:80", true},
		{"behind NAT64", []string{"10.1.0.0/16"}, "[64:ff9b::10.1.2.3]:80", true},
		{"not masked", []string{"10.1.2.3/16"}, "10.1.9.9:80", true},
		{"loopback", []string{"127.0.0.0/8"}, "127.0.0.1:80", true},
		{"loopback at our port", []string{"127.0.0.0/8"}, "127.0.0.1:8090", false},
		{"any loopback at our port", []string{"0.0.0.0/0"}, "127.3.2.1:8090", false},
		{"IPv6 loopback", []string{"::1/128"}, "[::1]:80", true},
		{"IPv6 loopback at our port", []string{"::1/128"}, "[::1]:8090", false},
		{"own address", []string{"203.0.114.7/32"}, "203.0.114.7:80", true},
		{"own address at our port", []string{"203.0.114.7/32"}, "203.0.114.7:8090", false},
		{"mapped own address at our port", []string{"203.0.114.7/32"}, "[::ffff:203.0.114.7]:8090", false},
		{"own address behind NAT64 at our port", []string{"203.0.114.7/32"}, "[64:ff9b::203.0.114.7]:8090", false},
		{"own address behind an opened NAT64 at our port", []string{"64:ff9b::/96"}, "[64:ff9b::203.0.114.7]:8090", false},
		{"own address behind 6to4 at our port", []string{"::/0"}, "[2002:cb00:7207::1]:8090", false},
		{"own address behind Teredo at our port", []string{"::/0"}, "[2001:0:4136:e378:8000:63bf:34ff:8df8]:8090", false},
		{"the unspecified address at our port", []string{"0.0.0.0/0"}, "0.0.0.0:8090", false},
		{"broadcast at our port", []string{"0.0.0.0/0"}, "255.255.255.255:8090", false},
		{"multicast at our port", []string{"0.0.0.0/0"}, "224.0.0.1:8090", false},
		{"the same elsewhere", []string{"0.0.0.0/0"}, "10.0.0.1:8090", true},
		{"a zone stays refused", []string{"::/0"}, "[fe80::1%eth0]:80", false},
		{"IPv4 is not in ::/0", []string{"::/0"}, "10.0.0.1:80", false},
		{"the public internet at our port", nil, "8.8.8.8:8090", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := testPolicy(closed, tt.allow...)
			if got := p.permits(netip.MustParseAddrPort(tt.to)); got != tt.want {
				t.Errorf("permits(%s) = %v with %v allowed", tt.to, got, tt.allow)
			}
		})
	}
}

func TestDenyWinsInEveryForm(t *testing.T) {
	p := denyingPolicy(0,
		[]string{"10.0.0.0/8", "168.63.129.16/32", "64:ff9b::/96", "::/0"},
		[]string{"10.1.0.0/16", "8.8.8.0/24", "::ffff:9.9.9.9/128", "2606:4700::/32"})
	for to, want := range map[string]bool{
		"10.0.0.1": true, "10.1.2.3": false, "::ffff:10.1.2.3": false,
		"64:ff9b::10.0.0.1": true, "64:ff9b::10.1.2.3": false, "::10.1.2.3": false,
		"2002:a00:1::1": true, "2002:a01:203::1": false,
		"2001:0:4136:e378:8000:63bf:f5ff:fffe": true,  // Teredo to 10.0.0.1
		"2001:0:4136:e378:8000:63bf:f5fe:fdfc": false, // Teredo to 10.1.2.3
		"2001:0:a01:203:8000:63bf:f7f5:f7f7":   false, // Teredo by way of it
		"8.8.4.4":                              true, "8.8.8.8": false, "64:ff9b::8.8.8.8": false, "9.9.9.9": false,
		"168.63.129.16": true, "2606:4701::1": true, "2606:4700::1": false,
	} {
		if got := p.permits(netip.AddrPortFrom(netip.MustParseAddr(to), 53)); got != want {
			t.Errorf("permits(%s) = %v", to, got)
		}
	}
}

func TestConnectionWithinHostIsRefused(t *testing.T) {
	const closed = 8090
	for _, test := range []struct {
		name          string
		allow         []string
		local, remote string
		want          bool
	}{
		{"to another host", nil, "203.0.114.7:1", "8.8.8.8:80", true},
		{"to an own address", nil, "203.0.114.7:1", "203.0.114.7:80", false},
		{"to one of no interface", nil, "8.8.8.8:1", "8.8.8.8:80", false},
		{"to that, mapped", nil, "8.8.8.8:1", "[::ffff:8.8.8.8]:80", false},
		{"to that, allowed", []string{"8.8.8.8/32"}, "8.8.8.8:1", "8.8.8.8:80", true},
		{"to that at our port, allowed", []string{"8.8.8.8/32"}, "8.8.8.8:1", "8.8.8.8:8090", false},
		{"to loopback, allowed", []string{"127.0.0.0/8"}, "127.0.0.1:1", "127.0.0.1:80", true},
	} {
		p := testPolicy(closed, test.allow...)
		if got := p.permitsConn(netip.MustParseAddrPort(test.local), netip.MustParseAddrPort(test.remote)); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

func TestNewHostAddressIsRefused(t *testing.T) {
	p := testPolicy(0)
	to := netip.MustParseAddrPort("8.8.4.4:53")
	var l lastVerdict
	if !l.permits(p, to) {
		t.Fatal("refused before")
	}
	before := p.host.Load()
	p.refresh(testHost())
	if p.host.Load() != before {
		t.Error("the same addresses made cached verdicts void")
	}
	h := testHost()
	h.add(netip.MustParsePrefix("8.8.4.4/32"))
	p.refresh(h)
	if l.permits(p, to) {
		t.Error("a verdict outlived the addresses it was found with")
	}
}

func TestHostAddressesAreRead(t *testing.T) {
	h, err := readHostAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"127.0.0.1", "127.9.9.9"} {
		if !h.has(netip.MustParseAddr(s)) {
			t.Errorf("%s is not among them: %v", s, h)
		}
	}
}

// An IPv4 address that is refused is also refused in every embedding.
func FuzzPolicy(f *testing.F) {
	for _, s := range []string{"8.8.8.8", "127.0.0.1", "10.0.0.1", "203.0.114.7", "0.0.0.0", "255.255.255.255"} {
		a := netip.MustParseAddr(s).As4()
		f.Add(a[:], []byte("0123456789abcdef"))
	}
	p := testPolicy(0)
	f.Fuzz(func(t *testing.T, v4, v6 []byte) {
		if len(v4) != 4 || len(v6) != 16 {
			return
		}
		a := [4]byte(v4)
		bare := p.judge(netip.AddrFrom4(a))
		wrap := func(at int, prefix ...byte) netip.Addr {
			b := [16]byte(v6)
			copy(b[:], prefix)
			copy(b[at:], a[:])
			return netip.AddrFrom16(b)
		}
		teredo := [16]byte(v6)
		copy(teredo[:], []byte{0x20, 1, 0, 0})
		for i := range a {
			teredo[12+i] = ^a[i]
		}
		for _, ip := range []netip.Addr{
			wrap(12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff),
			wrap(12, 0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0),
			wrap(2, 0x20, 0x02),
			netip.AddrFrom16(teredo),
		} {
			if got := p.judge(ip); got != refused && bare == refused {
				t.Errorf("%s is open although %s is refused", ip, netip.AddrFrom4(a))
			}
		}
		if ip := netip.AddrFrom16([16]byte(v6)); p.judge(ip.WithZone("eth0")) != refused && ip.Is6() && !ip.Is4In6() {
			t.Errorf("%s with a zone is open", ip)
		}
	})
}

func BenchmarkJudge(b *testing.B) {
	p := testPolicy(0, "10.0.0.0/8", "fd00::/8")
	for _, s := range []string{"8.8.8.8", "2606:4700:4700::1111"} {
		ip := netip.MustParseAddr(s)
		b.Run(s, func(b *testing.B) {
			for b.Loop() {
				if p.judge(ip) != open {
					b.Fatal("refused")
				}
			}
		})
	}
}
