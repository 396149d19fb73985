package entrance

import (
	"net"
	"time"
)

// keepAlive finds clients that are gone without a word, within a minute.
var keepAlive = net.KeepAliveConfig{
	Enable:   true,
	Idle:     30 * time.Second,
	Interval: 10 * time.Second,
	Count:    3,
}
