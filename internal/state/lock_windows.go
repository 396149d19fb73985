package state

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// lockOffset lies beyond the content: Windows locks are mandatory, and others have
// to read the process id in the file.
const lockOffset = 1 << 30

// lockFile opens path and locks it. The lock ends with the handle.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, err
	}
	at := &windows.Overlapped{Offset: lockOffset}
	const how = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	if err := windows.LockFileEx(windows.Handle(f.Fd()), how, 0, 1, 0, at); err != nil {
		_ = f.Close()
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
			return nil, ErrLocked
		}
		return nil, err
	}
	return f, nil
}
