package socks

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"wmproxy/internal/entrance"
)

// Numbers of SOCKS4.
const (
	version4 = 4

	// rejected4 refuses an application that did not authenticate; entrance.Result has the other codes.
	rejected4 = 93

	// maxUserID bounds the user ID, which is ignored, in bytes.
	maxUserID = 255
)

var (
	errLong4 = errors.New("socks: the user ID or name of a SOCKS4 request is too long")
	errAuth4 = errors.New("socks: SOCKS4 has no password")
)

// A request of SOCKS4, and of 4a, whose address is 0.0.0.x, and its reply, with version 0:
//
//	+-----+-----+------+----+---------+-----+  +--------+-----+
//	| VER | CMD | PORT | IP | USER ID |  0  |  |  NAME  |  0  |
//	| VER | REP | PORT | IP +---------+-----+  +--------+-----+
//	|  1  |  1  |  2   | 4  | 0 … 255 |  1  |  | 1 … 255|  1  |
//	+-----+-----+------+----+---------+-----+  +--------+-----+
const header4 = 8

// request4 receives a connection until its SOCKS4 request.
type request4 struct {
	server *Server
	conn   *entrance.Conn
	held   []byte // bounded by parseRequest4
}

// Receive takes the request once it is whole.
func (r *request4) Receive(b []byte) error {
	r.held = append(r.held, b...)
	command, dst, n, err := parseRequest4(r.held)
	switch {
	case err != nil || n == 0:
		return err
	case !r.server.Users.Open():
		r.server.told4.Do(func() {
			r.server.log().Warn("an application uses SOCKS4, which has no password, so that it is refused", slog.Any("client", r.conn.RemoteAddr()))
		})
		return r.conn.Told(errAuth4, appendReply4(nil, rejected4, netip.AddrPort{}))
	case command != commandConnect:
		return r.conn.Told(fmt.Errorf("%w: %d", errCommand, command), appendReply4(nil, entrance.UnknownCommand.SOCKS4(), netip.AddrPort{}))
	}
	stream, err := r.conn.Detach()
	if err != nil {
		return r.conn.Told(err, appendReply4(nil, entrance.Failed.SOCKS4(), netip.AddrPort{}))
	}
	stream.Connect(r.server.Handler, &entrance.Request{
		Origin: entrance.Origin{User: r.server.Users.Anyone(), Client: r.conn.RemoteAddr()},
		Target: dst.target(),
		Ahead:  r.held[n:],
		Answer: func(b []byte, res entrance.Result, bound netip.AddrPort) []byte {
			return appendReply4(b, res.SOCKS4(), bound)
		},
	})
	return nil
}

// Ended logs a request that failed.
func (r *request4) Ended(err error) {
	r.server.log().Debug("SOCKS4 request failed", slog.Any("client", r.conn.RemoteAddr()), slog.Any("err", err))
}

// parseRequest4 returns a request and its length, 0 while it is not whole.
func parseRequest4(b []byte) (command byte, dst Addr, n int, err error) {
	if len(b) <= header4 {
		return 0, Addr{}, 0, nil
	}
	user, ok, err := text4(b[header4:], maxUserID)
	if !ok {
		return 0, Addr{}, 0, err
	}
	n = header4 + len(user) + 1
	dst = Addr{IP: netip.AddrFrom4([4]byte(b[4:header4])), Port: binary.BigEndian.Uint16(b[2:])}
	if b[4] == 0 && b[5] == 0 && b[6] == 0 && b[7] != 0 {
		name, ok, err := text4(b[n:], 255)
		if !ok {
			return 0, Addr{}, 0, err
		}
		n += len(name) + 1
		if dst, err = AddrOf(string(name), dst.Port); err != nil {
			return 0, Addr{}, 0, err
		}
	}
	return b[1], dst, n, nil
}

// text4 returns the text before the first zero byte of b, and reports whether that has come.
func text4(b []byte, limit int) (text []byte, ok bool, err error) {
	text, _, ok = bytes.Cut(b, []byte{0})
	if len(text) > limit {
		return nil, false, errLong4
	}
	return text, ok, nil
}

// appendReply4 appends a reply. An IPv6 address, for which it has no place, is written as 0.0.0.0.
func appendReply4(b []byte, code byte, bound netip.AddrPort) []byte {
	ip := bound.Addr().Unmap()
	if !ip.Is4() {
		ip = netip.IPv4Unspecified()
	}
	b = binary.BigEndian.AppendUint16(append(b, 0, code), bound.Port())
	return append(b, ip.AsSlice()...)
}
