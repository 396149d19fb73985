package e2e

import (
	"testing"

	"wmproxy/internal/probe"
)

func TestDatagramsOfEverySizePassBothWays(t *testing.T) {
	overEach(t, []string{overQUIC, overYamux, overProxy}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		echo := startEcho(t)
		sizes, err := probe.Sizes(t.Context(), tu.Entry.Socks(), echo, []int{0, 1, 512, 1200, 1472, 9000, 65497})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sizes {
			if !s.OK() {
				t.Errorf("%d bytes: %d of %d came back: %v", s.Size, s.Received, s.Sent, s.Err)
			}
		}
	})
}
