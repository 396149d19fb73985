package server

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"wmproxy/internal/link"
	"wmproxy/internal/state"
	"wmproxy/internal/user"
)

// defaultUser is the name of the random token.
const defaultUser = "wmproxy"

// loadTokens returns the given tokens or, if there are none, the random one in the
// state directory, which it makes on the first start.
func loadTokens(given []link.Token, dir *state.Dir) ([]link.Token, error) {
	if len(given) == 0 {
		t, err := randomToken(dir)
		if err != nil {
			return nil, err
		}
		given = []link.Token{t}
	}
	return given, link.CheckTokens(given)
}

// setTokens replaces the users by those of tokens. The first one is in the link.
func (s *Server) setTokens(tokens []link.Token) user.Change {
	users := make([]*user.User, len(tokens))
	for i, t := range tokens {
		users[i] = user.New(t.Name, t.Secret, &s.total)
	}
	s.first.Store(&tokens[0])
	return s.users.Replace(users)
}

func randomToken(dir *state.Dir) (link.Token, error) {
	b, err := dir.ReadFile(fileToken)
	if errors.Is(err, fs.ErrNotExist) {
		t, err := link.NewToken(defaultUser)
		if err != nil {
			return t, err
		}
		return t, dir.WriteFile(fileToken, []byte(t.Name+":"+t.Secret+"\n"))
	}
	if err != nil {
		return link.Token{}, fmt.Errorf("%w; restore the file or its permissions", err)
	}
	t, err := link.ParseToken(strings.TrimSpace(string(b)))
	if err != nil {
		return t, fmt.Errorf("%s holds no token (%w); delete it to make a new one", dir.Join(fileToken), err)
	}
	return t, nil
}
