// Package state opens the state directory: a private directory that belongs to one
// process at a time, with small files that are replaced as a whole. It must not
// know their content.
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

// maxFile is the largest file, in bytes, that ReadFile and WriteFile accept.
const maxFile = 1 << 20

const (
	dirMode  = 0o700
	fileMode = 0o600

	lockName   = "lock"
	tempSuffix = ".tmp"
)

// ErrLocked is returned if another process has the directory open.
var ErrLocked = errors.New("in use by another process")

// Dir is an open and locked state directory. Its methods may be called from
// several goroutines.
type Dir struct {
	path string
	lock *os.File

	mu sync.Mutex // held during a write, which uses the temporary name
}

// DefaultDir returns the state directory of kind ("server", "client" or "proxy"):
// /var/lib/wmproxy/KIND for root, else $XDG_STATE_HOME/wmproxy/KIND, else
// ~/.local/state/wmproxy/KIND (on Windows %LocalAppData%\wmproxy\KIND), and for a
// service without a home directory $STATE_DIRECTORY/KIND, which systemd sets.
func DefaultDir(kind string) (string, error) {
	return defaultDir(kind, os.Geteuid() == 0, os.Getenv) // -1 on Windows
}

func defaultDir(kind string, root bool, getenv func(string) string) (string, error) {
	if root {
		return filepath.Join("/var/lib/wmproxy", kind), nil
	}
	// The XDG base directory specification says to ignore relative paths.
	if base := getenv("XDG_STATE_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "wmproxy", kind), nil
	}
	if runtime.GOOS == "windows" {
		if base := getenv("LocalAppData"); base != "" {
			return filepath.Join(base, "wmproxy", kind), nil
		}
	}
	// If the unit lists several directories, use the first.
	service, _, _ := strings.Cut(getenv("STATE_DIRECTORY"), ":")
	// The home of a systemd DynamicUser is /, and that of a Debian system user often
	// does not exist.
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

// Open makes the directory at path if it does not exist (mode 0700, parents too),
// checks that it belongs to this user and that nobody else can write to it, and
// locks it. It does not wait for the lock: it returns ErrLocked, wrapped, if another
// process has it.
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
	// For people to read. The program relies on the lock alone.
	_ = lock.Truncate(0)
	_, _ = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return &Dir{path: path, lock: lock}, nil
}

// Protect makes the named files private, if they exist, and returns the names of
// those that other users could read or write before. It returns an error if it
// cannot change a mode. Other files are left alone: the user may keep more in the
// directory.
func (d *Dir) Protect(names ...string) (exposed []string, err error) {
	if runtime.GOOS == "windows" {
		return nil, nil // access lists, not mode bits
	}
	for _, name := range names {
		file := d.Join(name)
		info, err := os.Stat(file) // of a link's target, which is read later
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

// makePrivate returns an error if the directory belongs to another user, or if
// others can write to it: they could replace our files. Instead of refusing an
// empty one (a fresh mkdir or a new container volume) it changes the mode, but
// not that of a sticky one such as /tmp, which others use.
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

// owner returns the id in the lock file, with parentheses, or "" if it cannot be read.
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

// Path returns the absolute path of the directory, or "" if d is nil.
func (d *Dir) Path() string {
	if d == nil {
		return ""
	}
	return d.path
}

// Join returns the absolute path of the file name.
func (d *Dir) Join(name string) string { return filepath.Join(d.path, name) }

// ReadFile returns the content of the file name. It returns fs.ErrNotExist, wrapped,
// if there is none, and an error if it is larger than maxFile.
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
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("it is larger than %d bytes and so not a file of wmproxy's", maxFile)
	}
	return data, nil
}

// WriteFile replaces the file name by one with mode 0600 and this content. After a
// crash at any time the file has either the old content or the new.
func (d *Dir) WriteFile(name string, data []byte) error {
	if err := checkName(name); err != nil {
		return err
	}
	if len(data) > maxFile {
		return fmt.Errorf("%d bytes are too many for the state file %s, at most %d fit", len(data), name, maxFile)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := replaceFile(d.Join(name), data); err != nil {
		return fmt.Errorf("cannot write %s (%w); make room or fix the permissions of that directory", d.Join(name), reason(err))
	}
	return nil
}

// replaceFile writes the new content to a temporary file and renames that to path.
// The temporary name is fixed, so that crashes leave at most one such file.
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
		err = f.Sync() // otherwise the rename may reach the disk before the content
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

// Close unlocks the directory. The files stay.
func (d *Dir) Close() error {
	// The lock file stays, too: if it were removed, two processes could lock two
	// different files.
	return d.lock.Close()
}

func checkName(name string) error {
	if name == lockName || name == "." || !filepath.IsLocal(name) || filepath.Base(name) != name || strings.HasSuffix(name, tempSuffix) {
		return fmt.Errorf("%q is not a name for a state file", name)
	}
	return nil
}

// reason returns the cause in err without the path, which our errors name already.
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
