package bench

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Range and precision of the histograms.
const (
	lowestRTT  = int64(time.Microsecond)
	highestRTT = int64(time.Minute)
	rttDigits  = 3
)

// recorder collects round-trip times, for the whole run and for each interval.
type recorder struct {
	mu       sync.Mutex
	interval *hdrhistogram.Histogram
	total    *hdrhistogram.Histogram
	series   []Point
}

// Point is an interval of a run.
type Point struct {
	RoundTrips int64   `json:"round_trips"`
	P50        float64 `json:"p50_us"`
	P99        float64 `json:"p99_us"`
}

func newRecorder() *recorder {
	return &recorder{
		interval: hdrhistogram.New(lowestRTT, highestRTT, rttDigits),
		total:    hdrhistogram.New(lowestRTT, highestRTT, rttDigits),
	}
}

// add records a batch of round-trip times in ns.
func (r *recorder) add(rtts []int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rtt := range rtts {
		_ = r.interval.RecordValue(min(max(rtt, lowestRTT), highestRTT)) // fails only out of range
	}
}

// endInterval ends the interval and begins the next.
func (r *recorder) endInterval() Point {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := Point{
		RoundTrips: r.interval.TotalCount(),
		P50:        micros(r.interval.ValueAtQuantile(50)),
		P99:        micros(r.interval.ValueAtQuantile(99)),
	}
	r.total.Merge(r.interval)
	r.interval.Reset()
	r.series = append(r.series, p)
	return p
}

// RTT is a distribution of round-trip times in microseconds.
type RTT struct {
	Min  float64 `json:"min_us"`
	Mean float64 `json:"mean_us"`
	P50  float64 `json:"p50_us"`
	P90  float64 `json:"p90_us"`
	P99  float64 `json:"p99_us"`
	P999 float64 `json:"p99_9_us"`
	Max  float64 `json:"max_us"`
}

// rtt returns the distribution of all round-trip times.
func (r *recorder) rtt() RTT {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total.Merge(r.interval)
	r.interval.Reset()
	if r.total.TotalCount() == 0 {
		return RTT{}
	}
	at := func(q float64) float64 { return micros(r.total.ValueAtQuantile(q)) }
	return RTT{
		Min: micros(r.total.Min()), Mean: r.total.Mean() / 1e3,
		P50: at(50), P90: at(90), P99: at(99), P999: at(99.9),
		Max: micros(r.total.Max()),
	}
}

func micros(ns int64) float64 { return float64(ns) / 1e3 }
