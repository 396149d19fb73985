package demo

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"wmproxy/internal/testmain"
)

func TestMain(m *testing.M) { testmain.Run(m) }

func TestDemoPasses(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	ok, err := Run(ctx, true, &out)
	if err != nil || !ok {
		t.Fatalf("passed %v, %v:\n%s", ok, err, &out)
	}
	for _, want := range []string{"datagram, 65,497 bytes", "DNS look-up, 192.0.2.53", "quic", "yamux", "Everything passed."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
}
