package status

import "wmproxy/tunnel"

// FromSession returns the form of s in a report.
func FromSession(s tunnel.SessionStatus) Session {
	out := Session{
		ID: s.ID, User: s.User, Leaving: s.Leaving,
		AgeSeconds: Seconds(s.Age), Attached: s.Attached, DetachedSeconds: Seconds(s.Detached),
		Datagrams: Choice{Carrier: s.Datagrams.Carrier, Why: s.Datagrams.Why},
		Streams:   Choice{Carrier: s.Streams.Carrier, Why: s.Streams.Why},
		Carriers:  make([]Carrier, 0, len(s.Carriers)),

		Associations: s.Flows, OpenStreams: s.OpenStreams, Drops: s.Drops.ByReason(),
	}
	for _, c := range s.Carriers {
		out.Carriers = append(out.Carriers, fromCarrier(c))
		for _, choice := range []*Choice{&out.Datagrams, &out.Streams} {
			if choice.Carrier == c.Number {
				choice.Transport = c.Kind.String()
			}
		}
	}
	return out
}

func fromCarrier(c tunnel.CarrierStatus) Carrier {
	return Carrier{
		Number: c.Number, Transport: c.Kind.String(), Local: c.Local.String(), Remote: c.Remote.String(),
		AgeSeconds: Seconds(c.Age), HeardSeconds: Seconds(c.Heard), RTTMillis: float64(c.RTT.Microseconds()) / 1000,
		Health: c.Health, Reason: c.Reason,
		ServesDatagrams: c.Datagrams, ServesNewStreams: c.Streams, OpenStreams: c.OpenStreams,
		SmallSegments: c.SmallSegments, Congestion: c.Congestion,
		Loss:    c.Loss,
		BytesUp: c.Path.BytesUp, BytesDown: c.Path.BytesDown,
		PacketsUp: c.Path.PacketsUp, PacketsLost: c.Path.PacketsLost,
		BundlesUp: c.BundlesUp, BundlesDown: c.BundlesDown,
		BundleBytesUp: c.BundleBytesUp, BundleBytesDown: c.BundleBytesDown,
	}
}

// fromBudget returns the form of b in a report, or nil if there is no limit.
func fromBudget(b tunnel.BudgetStatus) *Memory {
	if b.Limit == 0 {
		return nil
	}
	return &Memory{Used: b.Used, Limit: b.Limit, Resets: b.Resets}
}
