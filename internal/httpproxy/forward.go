package httpproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"time"

	"wmproxy/internal/entrance"
)

// Bounds of the connections to targets that a connection of an application has.
const (
	maxIdle            = 4
	maxResponseHead    = 256 << 10 // bytes
	expectContinueTime = time.Second
)

// maxName is the longest name of a host in bytes (RFC 1928 section 5).
const maxName = 255

// targetOf returns the target that a host and a port in decimal name.
func targetOf(host, port string) (entrance.Target, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || host == "" || len(host) > maxName {
		return entrance.Target{}, fmt.Errorf("the target is not HOST:PORT")
	}
	return entrance.Target{Host: host, Port: uint16(n)}, nil
}

// rewrite undoes the changes of a ReverseProxy that a forward proxy does not make: the query and what the application
// wrote about its own clients pass as they are. Hop-by-hop headers stay removed.
func rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.RawQuery = r.In.URL.RawQuery
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := r.In.Header[name]; ok {
			r.Out.Header[name] = values
		}
	}
}

// asSent keeps net/http from adding to a response that the target sent without a type.
func asSent(r *http.Response) error {
	if _, ok := r.Header["Content-Type"]; !ok {
		r.Header["Content-Type"] = nil
	}
	return nil
}

// failed answers a request whose target could not be asked.
func failed(w http.ResponseWriter, r *http.Request, err error) {
	status, text := http.StatusBadGateway, "the target's answer is not HTTP, or it closed the connection"
	if e := (*entrance.Error)(nil); errors.As(err, &e) {
		status, text = e.Result.HTTP(), e.Result.String()
	}
	refuse(w, status, r.URL.Host+": "+text)
}

// transport sends a request over the connections to targets of the application's connection.
type transport struct{ s *Server }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	c := connOf(r.Context())
	if c.targets == nil {
		o := c.origin
		c.targets = &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				host, port, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				target, err := targetOf(host, port)
				if err != nil {
					return nil, err
				}
				return t.s.Handler.Dial(ctx, o, target, c.HangUp)
			},
			DisableCompression:     true,
			MaxIdleConns:           maxIdle,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        idleTimeout,
			ExpectContinueTimeout:  expectContinueTime,
			MaxResponseHeaderBytes: maxResponseHead,
		}
	}
	return c.targets.RoundTrip(r)
}
