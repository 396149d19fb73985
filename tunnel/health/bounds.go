package health

import (
	"time"
)

const (
	// maxSteady bounds what relapses make of Timers.Steady.
	maxSteady = time.Minute

	// eagerFor is how long a suspect is probed eagerly.
	eagerFor = 30 * time.Second

	// idleProbe is the longest time between two pings; NAT mappings live longer.
	idleProbe = 10 * time.Second

	// How many bundles must have been sent for their loss to mean something, to
	// leave a carrier and to come back to it.
	judgedBundles = 10
	steadyBundles = 40

	// A carrier that loses more than half is left; it is taken back when it loses
	// less than three in ten.
	badShare, goodShare = 0.5, 0.7

	// Large bundles are eaten when it is less likely than this that ordinary loss,
	// taken to be leastLoss at least, met all of them: four where nothing else is lost.
	eatenChance = 1e-5
	leastLoss   = 0.05

	openPings   = 64  // that may still be answered
	keptSamples = 128 // answered pings that loss is judged by
)

const (
	// lossWindow is over how long the retransmissions of a TCP connection are
	// judged, and lossSegments how many segments must have been sent in it.
	lossWindow   = 5 * time.Second
	lossSegments = 50

	// A connection that resends more than one in lossBad segments loses new streams
	// to QUIC; it gets them back after lossRest, doubled by each relapse up to
	// maxLossRest: without streams there is little to judge it by.
	lossBad     = 50
	lossRest    = 30 * time.Second
	maxLossRest = 10 * time.Minute
)
