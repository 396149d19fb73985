package main

import "log/slog"

// raiseDescriptorLimit has nothing to do: Windows sets no such limit.
func raiseDescriptorLimit(*slog.Logger) {}

func descriptorLimit() int { return 0 }
