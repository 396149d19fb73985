//go:build unix

package e2e

import (
	"slices"
	"strings"
	"testing"

	"wmproxy/internal/status"
)

func TestStatusShowsSilenceOfDeadServer(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	f, c := startThrough(t, "--state-dir", dir, "--suspect", "500ms", "--suspect-idle", "1s")
	up := len(c.Logs())
	f.swallowTCP()
	f.cutUDP(true)

	suspect := func(r *status.Report) bool {
		return !slices.ContainsFunc(r.Sessions[0].Carriers, func(c status.Carrier) bool { return c.Health != "suspect" })
	}
	first := awaitReport(t, dir, "both in doubt", suspect)
	awaitReport(t, dir, "the silence of both, which grows", func(r *status.Report) bool {
		for i, carrier := range r.Sessions[0].Carriers {
			before := first.Sessions[0].Carriers[i]
			if !strings.HasPrefix(carrier.Reason, "silent for ") || carrier.HeardSeconds < before.HeardSeconds+1 || carrier.Reason == before.Reason {
				return false
			}
		}
		return true
	})
	text, _, _ := asked(t, "--state-dir", dir)
	if !strings.Contains(text, " in doubt: nothing has come since ") || strings.Contains(text, "tunnel up") || strings.Contains(text, "good") {
		t.Errorf("people read\n%s", text)
	}
	line, next := c.WaitLogAfter(up, "the doubt", containing(" in doubt: nothing has come since "))
	if line.Level != "WARN" {
		t.Errorf("it is %s", line.Level)
	}

	f.cutUDP(false)
	c.WaitLogAfter(next, "the tunnel being up", containing("tunnel up: quic to "))
}
