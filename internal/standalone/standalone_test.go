package standalone

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"wmproxy/internal/bench"
	"wmproxy/internal/config"
	"wmproxy/internal/probe"
	"wmproxy/internal/testmain"
	"wmproxy/socks"
)

func TestMain(m *testing.M) { testmain.Run(m) }

func TestTheProxyCarriesDatagramsOfEverySizeAndAStream(t *testing.T) {
	echo, err := bench.ListenEcho(netip.MustParseAddrPort("127.0.0.1:0"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	started, ended := make(chan net.Addr, 1), make(chan error, 1)
	cfg := config.DefaultProxy()
	cfg.Entrance.Listen, cfg.Entrance.User, cfg.Entrance.Pass = "127.0.0.1:0", "u", "p"
	cfg.Exit.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	go func() {
		ended <- Run(ctx, Config{
			Proxy: cfg, Log: slog.New(slog.DiscardHandler),
			Started: func(a net.Addr) { started <- a },
		})
	}()
	client := &socks.Client{Server: (<-started).String(), Username: "u", Password: "p"}
	results, err := probe.Sizes(ctx, client, socks.AddrFrom(echo.Addr()), []int{0, 1, 1472, 65497})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if !r.OK() {
			t.Errorf("%d bytes: %d of %d came back, %v", r.Size, r.Received, r.Sent, r.Err)
		}
	}
	if r := probe.Stream(ctx, client, socks.AddrFrom(echo.Addr()), 1<<20); r.Err != nil {
		t.Errorf("stream: %v", r.Err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the proxy ended with %v", err)
	}
}
