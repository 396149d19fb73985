package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"wmproxy/socks"
)

// failure is the step that failed and a sentence, without its full stop, with the
// error, its likely cause and advice.
type failure struct {
	step     string
	sentence string
}

func failAt(step, format string, args ...any) *failure {
	return &failure{step, fmt.Sprintf(format, args...)}
}

// Flags of wmproxy for the advice, with the commands that have them: the tested port
// belongs to a client or a proxy, the rules about targets to a server or a proxy.
const (
	udpFlag   = "wmproxy client or proxy: --udp ADDR"
	allowFlag = "wmproxy server or proxy: --allow"
)

// plain returns the text of err without the package's name in front.
func plain(err error) string { return strings.TrimPrefix(err.Error(), "socks: ") }

// handshakeFailure returns the failure of Connect or Associate. request is the
// command's name.
func (c *checker) handshakeFailure(request string, err error) *failure {
	var at *socks.StepError
	if !errors.As(err, &at) {
		return failAt(request, "%s", plain(err))
	}
	server := visible(c.socksAddr)
	if errors.Is(err, context.Canceled) {
		return failAt(at.Step.String(), "interrupted")
	}
	switch at.Step {
	case socks.StepDial:
		return dialFailure(server, at.Err)
	case socks.StepGreeting:
		return c.greetingFailure(server, at.Err)
	case socks.StepAuth:
		return authFailure(at.Err)
	case socks.StepReply:
		return c.replyFailure(request, at.Err)
	}
	return failAt(at.Step.String(), "%s", plain(at.Err))
}

func dialFailure(server string, err error) *failure {
	var unknown *net.DNSError
	switch {
	case errors.As(err, &unknown):
		return failAt("dial", "the name in %s does not resolve; check the address", server)
	case errors.Is(err, syscall.ECONNREFUSED):
		return failAt("dial", "nothing listens on %s; check that the SOCKS5 server runs and that the port is right", server)
	case timedOut(err):
		return failAt("dial", "no answer from %s; check the address, and that firewalls let this TCP port pass", server)
	}
	return failAt("dial", "cannot connect to %s (%v)", server, err)
}

func (c *checker) greetingFailure(server string, err error) *failure {
	const step = "greeting"
	switch {
	case errors.Is(err, socks.ErrNotSOCKS5):
		return failAt(step, "%s is not a SOCKS5 server; check the port", server)
	case errors.Is(err, socks.ErrNoMethod) && c.Username == "" && c.Password == "":
		return failAt(step, "the server demands authentication; give a user name and a password with -u and -p")
	case errors.Is(err, socks.ErrNoMethod):
		return failAt(step, "the server takes neither a user name and password nor no authentication, and there is no other way here; change its authentication")
	case errors.Is(err, socks.ErrHungUp):
		return failAt(step, "the server closed the connection; it is not a SOCKS5 server, or does not serve this client's address")
	case timedOut(err):
		return failAt(step, "the server does not answer; %s is probably not a SOCKS5 server, or is overloaded", server)
	}
	return failAt(step, "%s", plain(err))
}

func authFailure(err error) *failure {
	const step = "authentication"
	switch {
	case errors.Is(err, socks.ErrAuth):
		return failAt(step, "the server refused the user name or password; check -u and -p")
	case errors.Is(err, socks.ErrHungUp):
		return failAt(step, "the server closed the connection on the user name and password, which usually means that it refuses them; check -u and -p")
	case timedOut(err):
		return failAt(step, "the server does not answer to the user name and password; see its log")
	}
	return failAt(step, "%s", plain(err))
}

func (c *checker) replyFailure(request string, err error) *failure {
	step := request + " reply"
	var reply *socks.ReplyError
	switch {
	case errors.As(err, &reply):
		if request == "CONNECT" {
			c.refusal = reply.Code
		}
		return failAt(step, "the server replied %d (%s); %s", reply.Code, reply.Reason(), c.replyAdvice(request, reply.Code))
	case errors.Is(err, socks.ErrHungUp):
		return failAt(step, "the server closed the connection without a reply; see its log")
	case timedOut(err):
		return failAt(step, "the server does not reply; it waits for its own way out, or for %s", visible(c.target))
	case errors.Is(err, socks.ErrMalformed):
		return failAt(step, "%s; the server breaks RFC 1928", plain(err))
	}
	return failAt(step, "%s", plain(err))
}

// replyAdvice returns advice for a reply code, RFC 1928 section 6.
func (c *checker) replyAdvice(request string, code byte) string {
	target := visible(c.target)
	switch code {
	case socks.ReplyNotAllowed:
		if request == "ASSOCIATE" {
			return "the server's rules forbid UDP to this user or address; change them"
		}
		return fmt.Sprintf("the server's rules forbid %s; choose another target, or allow it there (%s)", target, allowFlag)
	case socks.ReplyNetworkUnreachable, socks.ReplyHostUnreachable:
		return c.noWay() + "; check its network and the target"
	case socks.ReplyConnectionRefused:
		return fmt.Sprintf("the server reached %s, and nothing listens on that TCP port; check the target", target)
	case socks.ReplyTTLExpired:
		return fmt.Sprintf("%s did not answer the server in time; check its network and the target", target)
	case socks.ReplyCommandUnsupported:
		return fmt.Sprintf("the server does not offer %s; switch it on there, or use another server", request)
	case socks.ReplyAddrUnsupported:
		return fmt.Sprintf("the server cannot handle the form of %s; try an IPv4 address", target)
	}
	return "see the server's log for the cause"
}

// noWay returns the cause if the server cannot reach the target.
func (c *checker) noWay() string {
	if c.target.IP.IsValid() {
		return "the server has no way to " + visible(c.target)
	}
	return fmt.Sprintf("the server has no way to %s, or cannot resolve the name", visible(c.target))
}

// answerFailure returns the failure for a wrong or incomplete answer.
func (c *checker) answerFailure(step string, err error) *failure {
	target := visible(c.target)
	switch {
	case errors.Is(err, context.Canceled):
		return failAt(step, "interrupted")
	case errors.Is(err, errUnexpected):
		return failAt(step, "%v; something answers in place of %s, or the expectation is out of date", err, target)
	case errors.Is(err, errNoRecord):
		return failAt(step, "%v; check the domain, and that %s resolves names for the server's address", err, target)
	case errors.Is(err, errNotDNS):
		return failAt(step, "%v; check that %s is a DNS server", err, target)
	case errors.Is(err, errCutShort):
		return failAt(step, "%v; the server drops data that arrives after a half-close, or %s is not an echo", err, target)
	case errors.Is(err, errChanged):
		return failAt(step, "%v; check that %s is an echo", err, target)
	case timedOut(err):
		return failAt(step, "the connection stands and no answer came; check that %s answers over TCP", target)
	}
	return failAt(step, "the connection broke off (%v); the server or %s closed it", err, target)
}

// hintAboutBound prints a hint if BND works from here but not from everywhere.
func (c *checker) hintAboutBound(conn *socks.PacketConn) {
	bound, relay := conn.BoundAddr(), conn.RelayAddr()
	switch {
	case bound.Name != "":
		c.hint("the server sent a name as BND.ADDR, which many applications cannot use; used its address %s instead", relay.Addr())
	case bound.IP.IsUnspecified():
		c.hint("the server sent BND.ADDR %s; used its address %s instead, but applications that take it literally fail: let the server tell its address ("+udpFlag+")", bound.IP, relay.Addr())
	default:
		if why := misled(relay.Addr(), conn.ServerAddr().Addr()); why != "" {
			c.hint("%s", why)
		}
	}
}

// misled returns the reason if datagrams to relay are unlikely to reach the server at
// this address, or else "".
func misled(relay, server netip.Addr) string {
	const advice = "let the server tell the address that clients reach it by (" + udpFlag + ")"
	switch {
	case relay.IsLoopback() && !server.IsLoopback():
		return fmt.Sprintf("BND.ADDR %s is loopback, which means this machine and not the server; %s", relay, advice)
	case relay.IsPrivate() && !server.IsPrivate() && !server.IsLoopback():
		return fmt.Sprintf("BND.ADDR %s is private, and the server was reached at %s: it is behind NAT or in a container; %s", relay, server, advice)
	}
	return ""
}

func (c *checker) sendFailure(ctx context.Context, conn *socks.PacketConn, err error) *failure {
	const step = "sending"
	if ctx.Err() != nil || errors.Is(err, socks.ErrAssociationEnded) {
		return c.receiveFailure(ctx, err)
	}
	return failAt(step, "BND.ADDR %s cannot be reached from here (%v); let the server tell an address that clients reach (%s)",
		conn.RelayAddr(), err, udpFlag)
}

func (c *checker) receiveFailure(ctx context.Context, err error) *failure {
	const step = "reply"
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return failAt(step, "interrupted")
	case ctx.Err() != nil:
		return failAt(step, "out of time")
	case errors.Is(err, socks.ErrAssociationEnded):
		return failAt(step, "the server ended the association by closing its TCP connection; see the server's log")
	}
	return failAt(step, "%s", plain(err))
}

// namedSourceFailure returns the failure for an answer with another source in its
// header than the target.
func (c *checker) namedSourceFailure(from socks.Addr) *failure {
	return failAt("reply", "wrong source: the header says that it comes from %s, not from %s, and applications drop such replies; the server must tell the true source",
		visible(from), visible(c.target))
}

// noReplyFailure looks for the reason why nothing came back.
func (c *checker) noReplyFailure(ctx context.Context, conn *socks.PacketConn) *failure {
	const step = "reply"
	relay := conn.RelayAddr()
	why := misled(relay.Addr(), conn.ServerAddr().Addr())
	if n, from := conn.WrongSource(); n > 0 {
		return failAt(step, "wrong source: %s came from %s, not from BND %s, and applications drop them; the server has several addresses or is behind NAT: let it send from the address that it tells", datagrams(int(n)), from, relay)
	}
	if n := conn.Malformed() + conn.Fragments(); n > 0 {
		return failAt(step, "malformed or fragmented reply: %s came back and no whole SOCKS5 datagram; the server breaks RFC 1928", datagrams(int(n)))
	}
	if refused(relay, c.Interval) {
		if why == "" {
			why = "let the server tell the address that clients reach it by (" + udpFlag + ")"
		}
		return failAt(step, "BND.ADDR unreachable: nothing takes datagrams at %s (ICMP port unreachable); %s", relay, why)
	}
	if ctx.Err() != nil {
		return c.receiveFailure(ctx, ctx.Err())
	}
	if refusal := c.refusedAsStream(); refusal != "" {
		why = refusal
	}
	if why != "" {
		return failAt(step, "no reply to %s: %s", datagrams(c.Attempts), why)
	}
	if relay.Addr().IsLoopback() {
		return failAt(step, "no reply to %s; UDP is lost behind the server, at a firewall or on its way out (wmproxy client: that of its server), or %s does not answer over UDP",
			datagrams(c.Attempts), visible(c.target))
	}
	return failAt(step, "no reply to %s; a firewall drops UDP to or from %s, BND.ADDR is not where the server listens (%s), or %s does not answer over UDP",
		datagrams(c.Attempts), relay, udpFlag, visible(c.target))
}

// refusedAsStream returns the cause if CONNECT was refused, or else "". Servers drop
// refused datagrams silently.
func (c *checker) refusedAsStream() string {
	target := visible(c.target)
	switch c.refusal {
	case 0:
		return ""
	case socks.ReplyNotAllowed:
		return fmt.Sprintf("the server's rules forbid %s, as it told CONNECT, and it drops such datagrams without a word; choose another target, or allow it there (%s)", target, allowFlag)
	case socks.ReplyNetworkUnreachable, socks.ReplyHostUnreachable:
		return c.noWay() + ", as it told CONNECT; check its network and the target"
	case socks.ReplyConnectionRefused:
		return fmt.Sprintf("nothing listens on that TCP port of %s, as the server told CONNECT, and probably nothing for UDP; check the target", target)
	case socks.ReplyTTLExpired:
		return fmt.Sprintf("%s did not answer the server's CONNECT either; check its network and the target", target)
	}
	return "CONNECT failed as well; see the server's log for the cause"
}

func datagrams(n int) string {
	if n == 1 {
		return "one datagram"
	}
	return fmt.Sprintf("%d datagrams", n)
}
