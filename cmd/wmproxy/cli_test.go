package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
)

func TestArgumentsArePutInOrder(t *testing.T) {
	for _, test := range []struct {
		name string
		args string // separated by spaces
		env  map[string]string
		want string
	}{
		{"nothing is help", "", nil, "wmproxy --help"},
		{"help", "help", nil, "wmproxy --help"},
		{"help for a command", "help client", nil, "wmproxy client --help"},
		{"help wins over flags", "client --listen x -h", nil, "wmproxy client --help"},
		{"a flag after the argument", "client LINK --listen x", nil, "wmproxy client --listen=x -- LINK"},
		{"a flag before the argument", "client --listen x LINK", nil, "wmproxy client --listen=x -- LINK"},
		{"flags around the argument", "client --open LINK --listen=x", nil, "wmproxy client --open=true --listen=x -- LINK"},
		{"one hyphen will do", "client -listen x LINK", nil, "wmproxy client --listen=x -- LINK"},
		{"a short name becomes the long one", "proxy -b x", nil, "wmproxy proxy --bind=x --"},
		{"a bool takes no value", "client --open LINK", nil, "wmproxy client --open=true -- LINK"},
		{"a bool can be refused", "client --open=false LINK", nil, "wmproxy client --open=false -- LINK"},
		{"bools may repeat", "client --open --open", nil, "wmproxy client --open=true --open=true --"},
		{"a list adds", "proxy --allow a --allow b,c", nil, "wmproxy proxy --allow=a --allow=b,c --"},
		{"two hyphens end the flags", "client -- --open", nil, "wmproxy client -- --open"},
		{"a value may start with a hyphen", "client --pass=--user", nil, "wmproxy client --pass=--user --"},
		{"an unknown hyphen may be a value", "client --pass -secret", nil, "wmproxy client --pass=-secret --"},
		{"a value may have an equals sign", "client --pass=a=b", nil, "wmproxy client --pass=a=b --"},
		{"plain is proxy", "--user aaa --pass bbb -b 0.0.0.0 --udp 127.0.0.1", nil, "wmproxy proxy --user=aaa --pass=bbb --bind=0.0.0.0 --udp=127.0.0.1 --"},
		{"a plain value may be a command's name", "--user client --pass x", nil, "wmproxy proxy --user=client --pass=x --"},

		{"the environment fills in", "client", map[string]string{"WMPROXY_CLIENT_LISTEN": "e"}, "wmproxy client --listen=e --"},
		{"hyphens are underscores", "client", map[string]string{"WMPROXY_CLIENT_UDP_PORT": "7"}, "wmproxy client --udp-port=7 --"},
		{"the command line wins", "client --listen x", map[string]string{"WMPROXY_CLIENT_LISTEN": "e"}, "wmproxy client --listen=x --"},
		{"empty is unset", "client", map[string]string{"WMPROXY_CLIENT_LISTEN": ""}, "wmproxy client --"},
		{"another command's is not ours", "proxy", map[string]string{"WMPROXY_CLIENT_USER": "e"}, "wmproxy proxy --"},
		{"plain reads proxy's", "--open", map[string]string{"WMPROXY_PROXY_BIND": "e", "WMPROXY_BIND": "f"}, "wmproxy proxy --open=true --bind=e --"},
		{"lists are split there", "proxy", map[string]string{"WMPROXY_PROXY_ALLOW": "a, b,,c"}, "wmproxy proxy --allow=a --allow=b --allow=c --"},
		{"spaces split what may hold commas", "server", map[string]string{"WMPROXY_SERVER_TOKEN": "a:b,c  d:e"}, "wmproxy server --token=a:b,c --token=d:e --"},
		{"what is typed wins over its other form", "client --pass p", map[string]string{"WMPROXY_CLIENT_PASS_FILE": "e"}, "wmproxy client --pass=p --"},
		{"a typed list replaces", "proxy --allow x", map[string]string{"WMPROXY_PROXY_ALLOW": "a,b"}, "wmproxy proxy --allow=x --"},
		{"single values are not split", "client", map[string]string{"WMPROXY_CLIENT_PASS": "a,b"}, "wmproxy client --pass=a,b --"},
		{"bools", "client", map[string]string{"WMPROXY_CLIENT_OPEN": "1"}, "wmproxy client --open=1 --"},
		{"nothing typed is still help", "", map[string]string{"WMPROXY_PROXY_USER": "e"}, "wmproxy --help"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _, _ := testProgram(test.env)
			got, err := p.arrange(p.app(), strings.Fields(test.args))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Fields(test.want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWrongUsageSaysWhatToDo(t *testing.T) {
	for _, test := range []struct {
		args, want string
		env        map[string]string
	}{
		{args: "bogus", want: "bogus is not a command; see wmproxy help"},
		{args: "help bogus", want: "bogus is not a command; see wmproxy help"},
		{args: "help client server", want: "help takes one command; see wmproxy help"},
		{args: "wmproxy://a:SECRET@h:1", want: "a link needs the command client before it; write wmproxy client LINK"},
		{args: "SECRET/@!", want: "the first argument is not a command; see wmproxy help"},
		{args: "--user a client LINK", want: "flags go after the command; write wmproxy client first and then its flags"},
		{args: "--state-dir d server", want: "flags go after the command; write wmproxy server first and then its flags"},
		{args: "--user a b", want: "there is an argument where wmproxy proxy takes none; put quotes around values with spaces, see wmproxy proxy --help"},
		{args: "server a SECRET", want: "there are 2 arguments where wmproxy server takes none; put quotes around values with spaces, see wmproxy server --help"},
		{args: "bench udp SECRET", want: "there are 2 arguments where wmproxy bench takes at most 1; put quotes around values with spaces, see wmproxy bench --help"},
		{args: "server SECRET", want: "there is an argument where wmproxy server takes none; put quotes around values with spaces, see wmproxy server --help"},
		{args: "client a b c d e f g h SECRET", want: "there are 9 arguments where wmproxy client takes at most 8; put quotes around values with spaces, see wmproxy client --help"},
		{args: "client --lisen x", want: "wmproxy client has no flag --lisen; see wmproxy client --help"},
		{args: "test -pSECRET", want: "-p needs a space before its value; see wmproxy test --help"},
		{args: "client --listen", want: "--listen needs a value; one that starts with a hyphen is written --listen=VALUE"},
		{args: "client --user --pass SECRET", want: "--user needs a value; one that starts with a hyphen is written --user=VALUE"},
		{args: "client --listen a --listen b", want: "--listen is given twice; give it once"},
		{args: "proxy -b a --bind b", want: "--bind is given twice; give it once"},
		{args: "client --open=maybe", want: "entrance.open (--open): must be true or false"},
		{args: "server --udp-idle soon", want: "exit.udp_idle (--udp-idle): must be a duration such as 30s or 5m"},
		{args: "server", env: map[string]string{"WMPROXY_SERVER_UDP_IDLE": "soon"}, want: "exit.udp_idle (WMPROXY_SERVER_UDP_IDLE): must be a duration such as 30s or 5m"},
		{args: "client", env: map[string]string{"WMPROXY_CLIENT_OPEN": "maybe"}, want: "entrance.open (WMPROXY_CLIENT_OPEN): must be true or false"},
	} {
		t.Run(test.args, func(t *testing.T) {
			p, stdout, stderr := testProgram(test.env)
			if code := p.run(t.Context(), strings.Fields(test.args)); code != exitUsage {
				t.Errorf("exit code %d", code)
			}
			if stdout.Len() > 0 {
				t.Errorf("standard output: %s", stdout)
			}
			if got := stderr.String(); got != "wmproxy: "+test.want+"\n" {
				t.Errorf("got  %s want wmproxy: %s", got, test.want)
			}
		})
	}
}

// A flag's name is a part of an environment variable, and arrange emits only
// long names.
func TestFlagsAreFitForTheEnvironment(t *testing.T) {
	p, _, _ := testProgram(nil)
	seen := make(map[string]string)
	for _, command := range p.app().Commands {
		for _, flag := range command.Flags {
			name := flag.Names()[0]
			if len(name) < 2 || strings.ToLower(name) != name || strings.Contains(name, "_") {
				t.Errorf("%s --%s", command.Name, name)
			}
			variable := envName(command.Name, name)
			if other := seen[variable]; other != "" {
				t.Errorf("%s is read by %s and %s", variable, other, command.Name)
			}
			seen[variable] = command.Name
			if env, ok := flag.(cli.DocGenerationFlag); ok && len(env.GetEnvVars()) > 0 {
				t.Errorf("--%s reads the environment by itself", name)
			}
		}
	}
}

// FuzzArrange looks for panics, for what urfave/cli does not take, and for
// secrets in errors.
func FuzzArrange(f *testing.F) {
	for _, seed := range []string{
		"", "client\x00LINK\x00--listen\x00x", "--user\x00a\x00client", "help\x00-h", "proxy\x00-b\x00=\x00--", "-", "--=", "client\x00---\x00--open=",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, joined string) {
		p, _, _ := testProgram(nil)
		app := p.app()
		for _, command := range app.Commands {
			command.Action = func(*cli.Context) error { return nil }
		}
		line, err := p.arrange(app, strings.Split(joined, "\x00"))
		if err == nil {
			err = app.RunContext(t.Context(), line)
			if err != nil {
				t.Fatalf("%q was arranged as %q and then refused: %v", joined, line, err)
			}
			return
		}
		if !errors.As(err, new(*usageError)) {
			t.Fatalf("%q: %v", joined, err)
		}
	})
}
