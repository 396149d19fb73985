package transports

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/config"
)

func TestOptionsNameTheTransports(t *testing.T) {
	var names []string
	for _, transport := range All {
		names = append(names, transport.Kind.String())
	}
	for _, options := range [][]string{config.DefaultServer().Transports, {config.QUIC, config.Yamux}} {
		if diff := cmp.Diff(names, options); diff != "" {
			t.Error(diff)
		}
	}
}
