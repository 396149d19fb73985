package main

import (
	"log/slog"
	"os"

	"wmproxy/internal/udpio"
)

// wantUDPBuffer is the socket buffer in bytes that QUIC asks for: what arrives at
// a gigabit while the process is kept from running for 50 ms.
const wantUDPBuffer = 7 << 20

// checkUDPBuffers logs one line if the host does not let sockets have buffers that
// large. quic-go's own notice is switched off for it.
func checkUDPBuffers(log *slog.Logger) {
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	read, write, ok := udpio.Buffers(wantUDPBuffer)
	if ok && (read < wantUDPBuffer || write < wantUDPBuffer) {
		log.Warn("this host's UDP buffers are small, so bursts will be lost; raise net.core.rmem_max and net.core.wmem_max",
			slog.Int("receive_bytes", read), slog.Int("send_bytes", write), slog.Int("wanted_bytes", wantUDPBuffer))
	}
}
