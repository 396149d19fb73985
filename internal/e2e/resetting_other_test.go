//go:build !unix

package e2e

import "net"

// Nothing runs here: see TestMain.
var resetting = &net.Dialer{}
