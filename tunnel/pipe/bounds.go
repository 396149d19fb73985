package pipe

const (
	maxBundles = 64 // under way in one direction

	maxStreams = 64 // that wait for AcceptStream, in one direction

	maxUnread = 128 << 10 // bytes written and not read, in one direction of a stream

	minBuffer = 4 << 10 // bytes that a stream's buffer begins with
)
