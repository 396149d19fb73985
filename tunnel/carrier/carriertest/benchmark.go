package carriertest

import (
	"io"
	"testing"

	"wmproxy/tunnel/carrier"
)

// Benchmark measures the transport's bundles, of 1,200 bytes and of the largest size, and its streams.
func Benchmark(b *testing.B, tr Transport) {
	b.Run("Bundles/1200", func(b *testing.B) { tr.benchmarkBundles(b, 1200) })
	b.Run("Bundles/Max", func(b *testing.B) { tr.benchmarkBundles(b, 0) })
	b.Run("Stream", tr.benchmarkStream)
}

func (tr Transport) benchmarkBundles(b *testing.B, size int) {
	client, server := tr.Start(b)
	if size == 0 {
		size = client.MaxBundle()
	}
	received := make(chan int, 1)
	go func() {
		n := 0
		dst := make([][]byte, 64)
		for {
			k, err := server.ReceiveBundles(dst)
			if err != nil {
				received <- n
				return
			}
			n += k
		}
	}()
	bundle := make([]byte, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if err := client.SendBundle(bundle); err != nil {
			b.Fatal(err)
		}
	}
	client.Close(carrier.CodeNone, "")
	b.ReportMetric(100*float64(<-received)/float64(b.N), "%arrived")
}

func (tr Transport) benchmarkStream(b *testing.B) {
	client, server := tr.Start(b)
	x, y := OpenPair(b, client, server)
	drunk := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, readerOnly{y})
		drunk <- n
	}()
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := x.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	x.CloseWrite()
	if n := <-drunk; n < int64(b.N)*int64(len(buf)) {
		b.Errorf("%d bytes arrived", n)
	}
}
