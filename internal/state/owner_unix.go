//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package state

import (
	"io/fs"
	"syscall"
)

// homeVariable names the home directory in the environment.
const homeVariable = "HOME"

// ownerOf returns the user id of a file's owner.
func ownerOf(info fs.FileInfo) (uid int, ok bool) {
	if stat, isStat := info.Sys().(*syscall.Stat_t); isStat {
		return int(stat.Uid), true
	}
	return 0, false
}
