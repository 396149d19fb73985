package config

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"wmproxy/internal/link"
)

// MaxCredential is the longest user name or password of SOCKS5, in bytes (RFC 1929
// section 2).
const MaxCredential = 255

// Bounds of options.
const (
	minTimer   = 100 * time.Millisecond
	maxSteady  = time.Minute
	maxDead    = 4 * time.Minute
	maxHold    = 24 * time.Hour
	maxDrain   = time.Hour
	minUDPIdle = time.Second
	maxUDPIdle = 24 * time.Hour

	minMemory = 16 << 20 // bytes
)

// Validate checks the options and completes addresses that lack a port. Its error is an
// *Error about the first that is wrong.
func (c *Client) Validate() error {
	var v validator
	v.check(len(c.Links) > 0 && len(c.Links) <= link.MaxLinks, fmt.Sprintf("must be 1 to %d links", link.MaxLinks), "links")
	v.oneOf("pick", c.Pick, PickOrder, PickFastest)
	v.oneOf("transport", c.Transport, Auto, QUIC, Yamux)
	v.oneOf("streams", c.Streams, Auto, QUIC, Yamux)
	v.check(c.Transport == Auto || c.Streams == Auto || c.Streams == c.Transport,
		"TCP prefers a transport that is left out; make them the same or drop one", "streams", "transport")
	v.within("timers.suspect", c.Timers.Suspect, minTimer, maxDead)
	v.within("timers.suspect_idle", c.Timers.SuspectIdle, c.Timers.Suspect, maxDead)
	v.within("timers.steady", c.Timers.Steady, minTimer, maxSteady)
	v.within("timers.dead", c.Timers.Dead, c.Timers.Suspect, maxDead)
	v.entrance(&c.Entrance, "1080")
	v.process(&c.Process)
	return v.err
}

// Validate is as Client.Validate.
func (s *Server) Validate() error {
	var v validator
	v.hostPort("listen", &s.Listen, "8090")
	v.check(len(s.Transports) > 0 && !slices.ContainsFunc(s.Transports, func(t string) bool { return t != QUIC && t != Yamux }),
		"must be quic, yamux or quic,yamux", "transports")
	if s.Advertise != "" {
		v.advertise(&s.Advertise)
	}
	v.users(s.Users)
	v.check((s.Cert == "") == (s.Key == ""), "they go together; give both or neither", "cert", "key")
	v.within("hold", s.Hold, 0, maxHold)
	v.within("drain", s.Drain, 0, maxDrain)
	v.within("dead", s.Dead, minTimer, maxDead)
	v.exit(&s.Exit)
	v.process(&s.Process)
	return v.err
}

// Validate is as Client.Validate.
func (p *Proxy) Validate() error {
	var v validator
	v.entrance(&p.Entrance, "8090")
	v.exit(&p.Exit)
	v.process(&p.Process)
	return v.err
}

// validator keeps the first error.
type validator struct{ err error }

func (v *validator) check(ok bool, message string, paths ...string) {
	if !ok && v.err == nil {
		v.err = &Error{paths, message}
	}
}

func (v *validator) checkErr(err error, paths ...string) {
	if err != nil {
		v.check(false, err.Error(), paths...)
	}
}

func (v *validator) oneOf(path, value string, words ...string) {
	if !slices.Contains(words, value) {
		v.checkErr(oneOf(words), path)
	}
}

func (v *validator) within(path string, d, least, most time.Duration) {
	v.check(d >= least && d <= most, "must be from "+short(least)+" to "+short(most), path)
}

// short writes a duration without the zeros that Duration.String ends in.
func short(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// hostPort fills in the port of an address that lacks one.
func (v *validator) hostPort(path string, address *string, port string) {
	complete, err := HostPort(*address, port)
	v.checkErr(err, path)
	if err == nil {
		*address = complete
	}
}

// advertise checks HOST or HOST:PORT and takes an IPv6 address without a port out of its
// brackets.
func (v *validator) advertise(address *string) {
	const path, none = "advertise", "0"
	complete, err := HostPort(*address, none)
	v.checkErr(err, path)
	if err != nil {
		return
	}
	host, port, _ := net.SplitHostPort(complete)
	v.check(link.CheckHost(host) == nil, "must be the IP address or name that clients reach this server by, with or without :PORT", path)
	if *address = complete; port == none {
		*address = host
	}
}

func (v *validator) users(users []User) {
	v.check(len(users) <= link.MaxTokens, fmt.Sprintf("must be at most %d users", link.MaxTokens), "users")
	seen := make(map[string]bool, len(users))
	for _, u := range users {
		t, err := link.ParseToken(u.Name + ":" + string(u.Token))
		v.checkErr(err, "users")
		v.check(err != nil || t.Name == u.Name, "a name may not have a colon", "users")
		v.check(!seen[u.Name], "two users have the name "+u.Name+"; give each user one token", "users")
		seen[u.Name] = true
	}
}

func (v *validator) entrance(e *Entrance, port string) {
	v.hostPort("entrance.listen", &e.Listen, port)
	v.check(!e.UDPAdvertise.IsMulticast(), "must be the IP address that applications reach this machine by", "entrance.udp_advertise")
	v.oneOf("entrance.udp_answers", e.UDPAnswers, AnswersByName, AnswersByAddress)
	v.check(e.Pass == "" || e.PassFile == "", "give one of them", "entrance.pass", "entrance.pass_file")
	v.check((e.User == "") == (e.Pass == "" && e.PassFile == ""), "they go together; give a user and a password, or neither", "entrance.user", "entrance.pass")
	v.check(len(e.User) <= MaxCredential, fmt.Sprintf("must have at most %d bytes", MaxCredential), "entrance.user")
	v.check(len(e.Pass) <= MaxCredential, fmt.Sprintf("must have at most %d bytes", MaxCredential), "entrance.pass")
}

func (v *validator) exit(e *Exit) {
	v.within("exit.udp_idle", e.UDPIdle, minUDPIdle, maxUDPIdle)
}

func (v *validator) process(p *Process) {
	v.check(p.Memory == 0 || p.Memory >= minMemory, "must be a size of at least 16MiB, such as 256MiB or 2GiB", "memory")
	v.check(!p.Debug.IsValid() || p.Debug.Addr().Unmap().IsLoopback(),
		"must be a loopback address, because there is no password; reach it from elsewhere through ssh -L", "debug")
	v.oneOf("log.format", p.Log.Format, Auto, LogConsole, LogJSON)
	v.oneOf("log.level", p.Log.Level, "debug", "info", "warn", "error")
}
