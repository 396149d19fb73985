package link

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wmproxy/certs"
	"wmproxy/internal/testmain"
)

func TestMain(m *testing.M) { testmain.Run(m) }

var testPin = certs.Pin{0: 1, 31: 0xff}

func TestLinksAreParsedAndFormatted(t *testing.T) {
	pin := testPin.String()
	for _, test := range []struct {
		text string
		want Link
		out  string // if it differs from text
	}{
		{"wmproxy://alice:s3cret@example.net:8090", Link{"alice", "s3cret", "example.net", 8090, nil}, ""},
		{"wmproxy://alice:s3cret@192.0.2.1:1?pin=" + pin, Link{"alice", "s3cret", "192.0.2.1", 1, &testPin}, ""},
		{"wmproxy://a:b@[2001:db8::1]:65535", Link{"a", "b", "2001:db8::1", 65535, nil}, ""},
		{"wmproxy://a:b@[fe80::1%25eth0]:1", Link{"a", "b", "fe80::1%eth0", 1, nil}, ""},
		{"wmproxy://a:%2F%3F%23%40%3A%25%2C@h:1", Link{"a", "/?#@:%,", "h", 1, nil}, ""},
		{"wmproxy://a:b:c@d@h:1", Link{"a", "b:c@d", "h", 1, nil}, "wmproxy://a:b%3Ac%40d@h:1"},
		{"wmproxy://a:%c3%a9@h:1", Link{"a", "é", "h", 1, nil}, "wmproxy://a:%C3%A9@h:1"},
		{" \tWMPROXY://a:b@h:1/\r\n", Link{"a", "b", "h", 1, nil}, "wmproxy://a:b@h:1"},
		{"wmproxy://a:b@h:1?x-comment=hi&pin=" + pin, Link{"a", "b", "h", 1, &testPin}, "wmproxy://a:b@h:1?pin=" + pin},
		{"wmproxy://a:b@h:1?", Link{"a", "b", "h", 1, nil}, "wmproxy://a:b@h:1"},
	} {
		got, err := Parse(test.text)
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
			continue
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: %s", test.text, diff)
		}
		out := test.out
		if out == "" {
			out = test.text
		}
		if got.Text() != out {
			t.Errorf("%s is formatted as %s", test.text, got.Text())
		}
	}
}

func TestLinkErrorsContainNoSecret(t *testing.T) {
	const secret = "hunter2"
	for _, text := range []string{
		"", secret, "http://a:" + secret + "@h:1", "wmproxy:a:" + secret + "@h:1",
		"wmproxy://" + secret, "wmproxy://" + secret + "@h:1", "wmproxy://a:" + secret + "@h", "wmproxy://a:" + secret + "@",
		"wmproxy://a:" + secret + "@:1", "wmproxy://a:" + secret + "@h:0", "wmproxy://a:" + secret + "@h:65536", "wmproxy://a:" + secret + "@h:http",
		"wmproxy://a:" + secret + "@2001:db8::1:1", "wmproxy://a:" + secret + "@h h:1", "wmproxy://a:" + secret + "@" + strings.Repeat("h", maxHost+1) + ":1",
		"wmproxy://:" + secret + "@h:1", "wmproxy://a b:" + secret + "@h:1", "wmproxy://" + strings.Repeat("a", maxName+1) + ":" + secret + "@h:1",
		"wmproxy://a:@h:1", "wmproxy://a:" + secret + strings.Repeat("x", maxSecret) + "@h:1",
		"wmproxy://a:" + secret + "%@h:1", "wmproxy://a:" + secret + "%zz@h:1", "wmproxy://a:" + secret + "%00@h:1", "wmproxy://a:" + secret + "%ff@h:1",
		"wmproxy://a:" + secret + " x@h:1", "wmproxy://a:" + secret + "/x@h:1", "wmproxy://a:" + secret + "#x@h:1", "wmproxy://a:" + secret + "?x@h:1",
		"wmproxy://a:" + secret + "@h:1/path", "wmproxy://a:" + secret + "@h:1?pin=", "wmproxy://a:" + secret + "@h:1?pin=" + secret,
		"wmproxy://a:" + secret + "@h:1?pin=" + testPin.String() + "=", "wmproxy://a:" + secret + "@h:1?pin=" + testPin.String() + "&pin=" + testPin.String(),
		"wmproxy://a:" + secret + "@h:1?" + secret + "=1", "wmproxy://a:" + secret + "@h:1?x-" + strings.Repeat("x", maxLink),
	} {
		_, err := Parse(text)
		if err == nil {
			t.Errorf("%.80s was accepted", text)
			continue
		}
		if message := err.Error(); strings.Contains(message, secret) || strings.Contains(message, "\n") {
			t.Errorf("%.80s: %s", text, message)
		}
	}
}

func TestSecretsAreNotLogged(t *testing.T) {
	l, err := Parse("wmproxy://alice:hunter2@h:1?pin=" + testPin.String())
	if err != nil {
		t.Fatal(err)
	}
	token := Token{Name: l.Name, Secret: l.Secret}
	var out bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
		slog.New(handler).Info("x", "link", l, "pointer", &l, "token", token, "tokens", []Token{token})
	}
	fmt.Fprintf(&out, "%v %+v %#v %s %v %v %+v %#v %v", token, token, token, token, []Token{token}, l, l, l, []Link{l})
	if strings.Contains(out.String(), "hunter2") {
		t.Errorf("got %s", out.String())
	}
	if want := "wmproxy://alice:***@h:1?pin=" + testPin.String(); l.String() != want {
		t.Errorf("got %s, want %s", l, want)
	}
}

func TestTokensAreChecked(t *testing.T) {
	for _, test := range []struct {
		text string
		want Token
		ok   bool
	}{
		{"alice:s", Token{"alice", "s"}, true},
		{"a.b-c_D9:x:y,z@/?", Token{"a.b-c_D9", "x:y,z@/?"}, true},
		{strings.Repeat("a", maxName) + ":" + strings.Repeat("x", maxSecret), Token{strings.Repeat("a", maxName), strings.Repeat("x", maxSecret)}, true},
		{"alice", Token{}, false},
		{":s", Token{}, false},
		{"alice:", Token{}, false},
		{"al ice:s", Token{}, false},
		{"alice:s s", Token{}, false},
		{"alice:s\n", Token{}, false},
		{"alice:\xff", Token{}, false},
		{strings.Repeat("a", maxName+1) + ":s", Token{}, false},
		{"a:" + strings.Repeat("x", maxSecret+1), Token{}, false},
	} {
		got, err := ParseToken(test.text)
		if got != test.want || (err == nil) != test.ok {
			t.Errorf("%q: %q %q, %v", test.text, got.Name, got.Secret, err)
		}
	}
}

func TestTokenFilesAreParsed(t *testing.T) {
	got, err := ParseTokens("# users\r\n\r\n  alice:a\r\nbob:b")
	if diff := cmp.Diff([]Token{{"alice", "a"}, {"bob", "b"}}, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if _, err := ParseTokens("alice:a\nhunter2\n"); err == nil || !strings.Contains(err.Error(), "line 2") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
	if _, err := ParseTokens("alice:a\nalice:b\n"); err == nil {
		t.Error("two tokens of one name were accepted")
	}
	var many strings.Builder
	for i := range MaxTokens + 1 {
		fmt.Fprintf(&many, "u%d:x\n", i)
	}
	if _, err := ParseTokens(many.String()); err == nil {
		t.Errorf("%d tokens were accepted", MaxTokens+1)
	}
}

func TestNewTokensDiffer(t *testing.T) {
	a, errA := NewToken("alice")
	b, errB := NewToken("alice")
	if errA != nil || errB != nil || a.Secret == b.Secret || len(a.Secret) != 43 {
		t.Errorf("got secrets of %d and %d characters, %v, %v", len(a.Secret), len(b.Secret), errA, errB)
	}
	if got, err := ParseToken(a.Name + ":" + a.Secret); got != a || err != nil {
		t.Errorf("it parses to %v, %v", got, err)
	}
	if _, err := NewToken("a b"); err == nil {
		t.Error("a name with a space was accepted")
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"wmproxy://alice:s3cret@example.net:8090", "wmproxy://a:b@[fe80::1%25eth0]:1?pin=" + testPin.String(),
		"wmproxy://a:%2F%3f@1.2.3.4:5?x-a=b&&", "wmproxy://a:b:c@d@h:1/", "wmproxy://@:?", "wmproxy://a:b@[::]:1#",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := Parse(text)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		again, err := Parse(l.Text())
		if err != nil {
			t.Fatalf("%q was parsed and then formatted as %q: %v", text, l.Text(), err)
		}
		if diff := cmp.Diff(l, again); diff != "" {
			t.Fatalf("%q: %s", text, diff)
		}
		if again.Text() != l.Text() {
			t.Fatalf("%q and %q", l.Text(), again.Text())
		}
	})
}

func FuzzParseTokens(f *testing.F) {
	f.Add("alice:a\n# x\n\nbob:b:c\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		tokens, err := ParseTokens(text)
		if err != nil {
			return
		}
		for _, token := range tokens {
			if again, err := ParseToken(token.Name + ":" + token.Secret); err != nil || again != token {
				t.Fatalf("%q: %v", text, err)
			}
		}
	})
}
