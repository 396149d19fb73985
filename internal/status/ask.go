package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// askTime bounds Ask.
	askTime = 10 * time.Second

	// maxDocument bounds the document, in bytes.
	maxDocument = 64 << 20
)

// ErrNobody is returned by Ask if no process answers in the state directory.
var ErrNobody = errors.New("nobody answers")

// Ask returns the report of the process that has the state directory dir open, and
// the JSON document that it was parsed from.
func Ask(ctx context.Context, dir string) (r Report, document []byte, err error) {
	path := filepath.Join(dir, SocketName)
	if err := checkPath(path); err != nil {
		return r, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errRefused), errors.Is(err, syscall.ENOTDIR):
		return r, nil, ErrNobody
	case errors.Is(err, fs.ErrPermission):
		return r, nil, fmt.Errorf("%s belongs to another user; ask as that one", path)
	case err != nil:
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err
		}
		return r, nil, fmt.Errorf("cannot connect to %s (%w); check the permissions of its directory", path, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	document, err = io.ReadAll(io.LimitReader(conn, maxDocument))
	if err != nil {
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			err = fmt.Errorf("the process behind %s does not answer within %v; check that it is not stopped", path, askTime)
		case ctx.Err() != nil:
			err = ctx.Err()
		default:
			err = fmt.Errorf("the process behind %s broke off its answer (%w); ask again", path, err)
		}
		return r, nil, err
	}
	if len(document) == 0 {
		return r, nil, ErrNobody // the process was about to end
	}
	if err := json.Unmarshal(document, &r); err != nil {
		return r, nil, fmt.Errorf("the answer on %s is not a report: %w", path, err)
	}
	return r, document, nil
}
