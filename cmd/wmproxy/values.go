package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"wmproxy/internal/config"
)

// maxInputFile bounds a file that a flag names, in bytes.
const maxInputFile = 1 << 20

// hostPort reads HOST:PORT, HOST or :PORT and fills in the default port.
func (p *program) hostPort(flag, text, defaultPort string) (string, error) {
	address, err := config.HostPort(text, defaultPort)
	if err != nil {
		return "", p.wrong(flag, err.Error())
	}
	return address, nil
}

// target is hostPort for an address to connect to: host and port are needed.
func (p *program) target(flag, text, defaultPort string) (string, error) {
	address, err := p.hostPort(flag, text, defaultPort)
	if err != nil {
		return "", err
	}
	host, port, _ := net.SplitHostPort(address)
	if host == "" || port == "0" {
		return "", p.wrong(flag, "must be HOST:PORT with a port from 1 to 65535")
	}
	return address, nil
}

// choice reads one of a few words.
func (p *program) choice(c *cli.Context, flag string, words ...string) (string, error) {
	text := c.String(flag)
	for _, word := range words {
		if text == word {
			return word, nil
		}
	}
	return "", p.wrong(flag, "must be one of "+strings.Join(words, ", "))
}

// credentials reads --user and --pass.
func credentials(c *cli.Context) (user, pass string, err error) {
	user, pass = c.String("user"), c.String("pass")
	switch {
	case (user == "") != (pass == ""):
		err = usageErrorf("--user and --pass go together; give both or neither")
	case len(user) > config.MaxCredential || len(pass) > config.MaxCredential:
		err = usageErrorf("--user and --pass may have at most %d bytes each; shorten them", config.MaxCredential)
	}
	return user, pass, err
}

// readSmall reads a file that a flag names, of at most maxInputFile bytes. Its
// error names the file, the reason, and the flag to check.
func (p *program) readSmall(flag, path string) ([]byte, error) {
	data, err := readBounded(path)
	if err != nil {
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return nil, fmt.Errorf("cannot read %s (%w); check %s and the permissions of the file", path, err, p.origin(flag))
	}
	return data, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxInputFile+1))
	if err == nil && len(data) > maxInputFile {
		err = errors.New("it is larger than 1 MiB")
	}
	return data, err
}
