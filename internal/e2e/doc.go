// Package e2e tries wmproxy as its users have it: the real program, as separate
// processes, between real applications and real targets on loopback.
package e2e
