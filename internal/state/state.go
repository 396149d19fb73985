// Package state keeps the state directory: a private directory that one process
// at a time owns, with small files that are either the old or the new version
// and never half of one. It must not know what is kept in it.
package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
)

// MaxFile is the largest file, in bytes, that ReadFile and WriteFile accept.
const MaxFile = 1 << 20

const (
	dirMode  = 0o700
	fileMode = 0o600

	lockName   = "lock"
	tempSuffix = ".tmp"
)

// ErrLocked says that another process has the directory open.
var ErrLocked = errors.New("in use by another process")

// Dir is an open and locked state directory. Its methods may be called from
// several goroutines.
type Dir struct {
	path string
	lock *os.File

	mu sync.Mutex // one write at a time, so that the temporary name is free
}

// DefaultDir is where the state of kind ("server", "client" or "proxy") lives when
// nothing else is said: /var/lib/wmproxy/KIND for root, else
// $XDG_STATE_HOME/wmproxy/KIND, else ~/.local/state/wmproxy/KIND (on Windows
// %LocalAppData%\wmproxy\KIND), and for a service without a home directory
// $STATE_DIRECTORY/KIND, which systemd sets.
func DefaultDir(kind string) (string, error) {
	return defaultDir(kind, os.Geteuid() == 0, os.Getenv) // -1 on Windows
}

func defaultDir(kind string, root bool, getenv func(string) string) (string, error) {
	if root {
		return filepath.Join("/var/lib/wmproxy", kind), nil
	}
	// The XDG base directory specification has relative paths ignored.
	if base := getenv("XDG_STATE_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "wmproxy", kind), nil
	}
	if runtime.GOOS == "windows" {
		if base := getenv("LocalAppData"); base != "" {
			return filepath.Join(base, "wmproxy", kind), nil
		}
	}
	// Of several directories the first one is ours.
	service, _, _ := strings.Cut(getenv("STATE_DIRECTORY"), ":")
	// Users that systemd makes up for a service (DynamicUser) have / as their home, and
	// system users of Debian's one that does not exist.
	if home := getenv(homeVariable); filepath.IsAbs(home) && filepath.Dir(home) != home && (service == "" || exists(home)) {
		return filepath.Join(home, ".local", "state", "wmproxy", kind), nil
	}
	if filepath.IsAbs(service) {
		return filepath.Join(service, kind), nil
	}
	return "", errors.New("there is no home directory to keep state in; give --state-dir DIR, or StateDirectory= in a systemd unit")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Open makes the directory at path where it is missing (mode 0700, parents
// too), checks that it is ours and that nobody else can write to it, and locks it.
// It never waits for the lock: errors.Is(err, ErrLocked) when another process has it.
func Open(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", path, err)
	}
	if err := os.MkdirAll(path, dirMode); err != nil {
		return nil, fmt.Errorf("cannot make the state directory %s (%w); give another with --state-dir", path, reason(err))
	}
	if err := makePrivate(path); err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(path, lockName))
	switch {
	case errors.Is(err, ErrLocked):
		return nil, fmt.Errorf("the state directory %s is %w%s; stop that one or give this one its own with --state-dir",
			path, ErrLocked, owner(path))
	case err != nil:
		return nil, fmt.Errorf("cannot lock the state directory %s (%w); give another with --state-dir", path, reason(err))
	}
	// Only for people who read it: the lock itself is what counts.
	_ = lock.Truncate(0)
	_, _ = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return &Dir{path: path, lock: lock}, nil
}

// Protect takes the rights of others away from the named files, if they exist, and
// returns the names of the files it changed. It returns an error if a mode cannot be
// changed. Other files are left alone: the user may keep more in the directory.
func (d *Dir) Protect(names ...string) (exposed []string, err error) {
	if runtime.GOOS == "windows" {
		return nil, nil // access lists, not mode bits
	}
	for _, name := range names {
		file := d.Join(name)
		info, err := os.Stat(file) // of a link's target: that is what is read
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 == 0 {
			continue
		}
		if err := os.Chmod(file, info.Mode().Perm()&^0o077); err != nil {
			return nil, fmt.Errorf("other users can read or write %s and that cannot be changed (%w); put a file with mode 0600 there", file, reason(err))
		}
		exposed = append(exposed, name)
	}
	return exposed, nil
}

// makePrivate refuses a directory that is another user's, or that others can write
// to: they could put their own files in place of ours. An empty one is
// taken over instead (a fresh mkdir or a new container volume), a shared one
// such as /tmp never: its mode belongs to somebody else.
func makePrivate(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("cannot look at the state directory %s (%w); give another with --state-dir", path, reason(err))
	}
	if owner, ok := ownerOf(info); ok && owner != os.Geteuid() {
		return fmt.Errorf("the state directory %s belongs to another user (%d, and this is %d); run chown -R %d on it or give another with --state-dir",
			path, owner, os.Geteuid(), os.Geteuid())
	}
	if runtime.GOOS == "windows" || info.Mode().Perm()&0o077 == 0 {
		return nil // Windows keeps access lists, not mode bits
	}
	entries, err := os.ReadDir(path)
	if err == nil && len(entries) == 0 && info.Mode()&fs.ModeSticky == 0 && os.Chmod(path, dirMode) == nil {
		return nil
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("other users can write to the state directory %s; run chmod 700 on it or give another with --state-dir", path)
	}
	return nil // readable by others, but every file of ours in it is 0600
}

// owner names the process that wrote itself into the lock file, if it can be read.
func owner(path string) string {
	data, err := readFile(filepath.Join(path, lockName))
	if err != nil {
		return ""
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (%d)", pid)
}

// Path returns the absolute path of the directory.
func (d *Dir) Path() string { return d.path }

// Join returns the absolute path of the file name.
func (d *Dir) Join(name string) string { return filepath.Join(d.path, name) }

// ReadFile returns the content of name. A missing file is fs.ErrNotExist; more
// than MaxFile bytes are an error.
func (d *Dir) ReadFile(name string) ([]byte, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	data, err := readFile(d.Join(name))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s (%w)", d.Join(name), reason(err))
	}
	return data, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxFile {
		return nil, fmt.Errorf("it is larger than %d bytes and so not a file of wmproxy's", MaxFile)
	}
	return data, nil
}

// WriteFile replaces name with data, mode 0600. After a crash at any moment the
// file holds either the old content or the new.
func (d *Dir) WriteFile(name string, data []byte) error {
	if err := checkName(name); err != nil {
		return err
	}
	if len(data) > MaxFile {
		return fmt.Errorf("%d bytes are too many for the state file %s, at most %d fit", len(data), name, MaxFile)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := replaceFile(d.Join(name), data); err != nil {
		return fmt.Errorf("cannot write %s (%w); make room or fix the permissions of that directory", d.Join(name), reason(err))
	}
	return nil
}

// replaceFile writes path's new content beside it and renames it into place.
// The temporary name is fixed, so that crashes leave one file behind, not many.
func replaceFile(path string, data []byte) error {
	temp := path + tempSuffix
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync() // or the rename may reach the disk before the bytes do
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename durable. Windows cannot sync a directory and does not
// need to.
func syncDir(path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Close releases the directory to the next process. The files stay.
func (d *Dir) Close() error {
	// Closing the descriptor releases the lock; the lock file is left, because
	// removing it would let two processes lock two different files.
	return d.lock.Close()
}

func checkName(name string) error {
	if name == lockName || name == "." || !filepath.IsLocal(name) || filepath.Base(name) != name || strings.HasSuffix(name, tempSuffix) {
		return fmt.Errorf("%q is not a name for a state file", name)
	}
	return nil
}

// reason strips the path that our sentences already name.
func reason(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	var linkErr *os.LinkError
	if errors.As(err, &linkErr) {
		return linkErr.Err
	}
	return err
}
