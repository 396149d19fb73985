package admit

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func acceptError(errno syscall.Errno) error {
	return &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", errno)}
}

func TestAcceptBacksOffWhileDescriptorsLack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errs := []error{
			acceptError(syscall.EMFILE), acceptError(syscall.ENFILE), acceptError(syscall.ECONNABORTED), acceptError(syscall.EMFILE),
		}
		start := time.Now()
		var lacking []bool
		got, err := Accept(t.Context(), func() (string, error) {
			if len(errs) == 0 {
				return "connection", nil
			}
			err := errs[0]
			errs = errs[1:]
			return "", err
		}, func(err error) { lacking = append(lacking, NoDescriptors(err)) })
		if got != "connection" || err != nil || time.Since(start) != 75*time.Millisecond {
			t.Errorf("%q, %v after %v; want the connection after 5+10+20+40 ms", got, err, time.Since(start))
		}
		if diff := cmp.Diff([]bool{true, true, false, true}, lacking); diff != "" {
			t.Errorf("no descriptors (-want +got):\n%s", diff)
		}
	})
}

func TestAcceptReturnsErrorsThatStay(t *testing.T) {
	for _, want := range []error{
		io.EOF, net.ErrClosed, &net.OpError{Op: "accept", Err: net.ErrClosed}, acceptError(syscall.EINVAL),
		&net.OpError{Op: "read", Err: syscall.ENETDOWN},
	} {
		calls := 0
		_, err := Accept(t.Context(), func() (int, error) { calls++; return 0, want }, func(error) {})
		if !errors.Is(err, want) || calls != 1 {
			t.Errorf("%v after %d calls, want %v after one", err, calls, want)
		}
	}
}

func TestAcceptEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Accept(ctx, func() (int, error) { return 0, acceptError(syscall.EMFILE) }, func(error) { cancel() })
	if err == nil {
		t.Error("no error")
	}
}
