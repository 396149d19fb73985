package egress

// maxLooked bounds the entries that oldest compares: a search of a whole table for each
// datagram would be too slow for a flow that scans.
const maxLooked = 16

// oldest returns the key of the oldest of a few entries in m's random order. It passes over
// entries for which age returns false; ok is false if there are no others.
func oldest[K comparable, V any](m map[K]V, age func(V) (age int64, ok bool)) (key K, ok bool) {
	var greatest int64
	looked := 0
	for k, v := range m {
		a, usable := age(v)
		if !usable {
			continue
		}
		if looked == 0 || a > greatest {
			key, greatest = k, a
		}
		if looked++; looked == maxLooked {
			break
		}
	}
	return key, looked > 0
}
