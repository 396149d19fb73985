package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// printLink prints the command to run on the client. The link is a secret and goes to
// a terminal alone: a log, a journal or a container's output would keep it, for others
// to read.
func (p *program) printLink(link, path string) {
	if p.shown {
		fmt.Fprintf(p.stdout, "On the client:\n\n  %s client '%s'\n\n", p.name, link)
		return
	}
	fmt.Fprintf(p.stdout, "The link for the client, which is a secret, is in\n\n  %s\n\nCopy that file to the client, and there:\n\n  %s client --link-file %s\n\n",
		path, p.name, filepath.Base(path))
}

// commandName returns the command that runs the program that was started as arg0:
// its name alone if that finds it on PATH, otherwise the path.
func commandName(arg0 string) string {
	name := filepath.Base(arg0)
	if name == arg0 {
		return name // a shell found it
	}
	if found, err := exec.LookPath(name); err == nil && sameFile(found, arg0) {
		return name
	}
	return quoted(arg0)
}

func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// quoted returns word as a shell reads it.
func quoted(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/:\\"
	if strings.Trim(word, plain) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
