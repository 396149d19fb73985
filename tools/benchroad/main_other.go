//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "benchroad: it makes network namespaces, which takes Linux")
	os.Exit(1)
}
