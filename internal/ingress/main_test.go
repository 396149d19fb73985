package ingress

import (
	"testing"

	"wmproxy/internal/testmain"
)

func TestMain(m *testing.M) { testmain.Run(m) }
