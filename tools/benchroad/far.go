//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"

	"github.com/quic-go/quic-go/http3"

	"wmproxy/certs"
	"wmproxy/internal/bench"
)

// farCommand is the first word of a command line by which this program starts itself at
// the targets: "far ECHO HTTP3 CERT KEY". It prints farReady when it listens.
const (
	farCommand = "far"
	farReady   = "ready"
)

func runFar(ctx context.Context, args []string) error {
	if len(args) != 4 {
		return errors.New("far takes two addresses, a certificate and a key")
	}
	at, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	e, err := bench.ListenEcho(at, true)
	if err != nil {
		return err
	}
	defer e.Close()
	id, err := certs.LoadOrCreate(args[2], args[3])
	if err != nil {
		return err
	}
	socket, err := net.ListenPacket("udp4", args[1])
	if err != nil {
		return err
	}
	defer socket.Close()
	server := &http3.Server{
		TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{*id.Certificate()}}),
		Handler:   http.HandlerFunc(fill),
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(socket) }()
	fmt.Println(farReady)
	<-ctx.Done()
	err = server.Close()
	<-served
	return err
}

// fill answers a request until the client has had enough.
func fill(w http.ResponseWriter, _ *http.Request) {
	chunk := make([]byte, 64<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(chunk)
	for {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}
