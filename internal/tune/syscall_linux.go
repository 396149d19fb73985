package tune

import "golang.org/x/sys/unix"

// Syscall makes a system call that does not wait. With RawCalls on, the scheduler is not told of it:
// the first call that it is told of after the process was idle wakes the runtime's monitor thread, which
// then looks every 20 µs until the process is idle again. At 5,000 datagrams/s that was half of all context
// switches. In return, nothing else runs on the processor during the call, which should take no longer than 100 µs.
//
// The pointers among its arguments have to be converted in the call (see unsafe.Pointer). They escape.
//
//go:uintptrescapes
func Syscall(trap, a1, a2, a3, a4, a5, a6 uintptr) (r uintptr, errno unix.Errno) {
	if RawCalls.On() {
		r, _, errno = unix.RawSyscall6(trap, a1, a2, a3, a4, a5, a6)
	} else {
		r, _, errno = unix.Syscall6(trap, a1, a2, a3, a4, a5, a6)
	}
	return r, errno
}
