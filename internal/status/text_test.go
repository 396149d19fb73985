package status

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/stats"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

var update = flag.Bool("update", false, "write the golden files anew")

func pointer(f float64) *float64 { return &f }

func clientReport() Report {
	r := Report{
		Role: Client, PID: 4711, At: noon.Add(3*time.Minute + 12*time.Second), Started: noon, Listen: "127.0.0.1:1080",
		Events: []Event{
			{noon, "quic attached to 203.0.113.5:8090"},
			{noon.Add(time.Minute), "quic silent for 2.1 s, datagrams moved to yamux"},
			{noon.Add(2 * time.Minute), "a peer's words \x1b[31m\u202e"},
		},
	}
	var total stats.Total
	total.Up(130, 14000)
	total.Down(128, 130000)
	total.StreamUp(2000)
	total.StreamDown(3 << 20)
	r.Total = fromTotal(&total)
	r.setSessions([]Session{
		{
			ID: "1a2b3c4d", Server: "vpn.example.net:8090", User: "alice", Preferred: true,
			AgeSeconds: 191.9, Attached: true, State: "tunnel up: quic to 203.0.113.5:8090, yamux to 203.0.113.5:8090",
			Datagrams: Choice{2, "yamux", "quic silent for 2.1 s"}, Streams: Choice{2, "yamux", "preferred"},
			Carriers: []Carrier{
				{
					Number: 1, Transport: "quic", Remote: "203.0.113.5:8090", AgeSeconds: 191.8, HeardSeconds: 2.1, RTTMillis: 21.437,
					Health: "suspect", Reason: "silent for 2.1 s", BytesUp: 1 << 20, BytesDown: 3355443, Loss: pointer(0.25), PacketsUp: 1000, PacketsLost: 10,
				},
				{
					Number: 2, Transport: "yamux", Remote: "203.0.113.5:8090", AgeSeconds: 9.26, HeardSeconds: 0.31, Health: "good",
					ServesDatagrams: true, ServesNewStreams: true, OpenStreams: 3, BytesUp: 999, BytesDown: 7 << 30, PacketsUp: 1000, PacketsLost: 5,
				},
			},
			Associations: 2, OpenStreams: 3, Drops: map[string]uint64{"stale": 3, "ended": 12, "unknown": 3},
		},
		{
			ID: "99887766", Server: "192.0.2.9:8090", User: "alice", AgeSeconds: 191.9, DetachedSeconds: 4000, Leaving: true,
			State: "tunnel down, trying again: no answer", Datagrams: Choice{Why: "nothing is attached"}, Streams: Choice{Why: "nothing is attached"},
		},
	})
	r.setAssociations([]Association{
		{Client: "127.0.0.1:40002", Session: "1a2b3c4d", Flow: 4, AgeSeconds: 200000, Up: stats.Traffic{Datagrams: 3, Bytes: 90}, Down: stats.Traffic{Datagrams: 2, Bytes: 80}},
		{Client: "127.0.0.1:40000", User: "app", Session: "1a2b3c4d", Flow: 2, AgeSeconds: 59.6, Up: stats.Traffic{Datagrams: 120, Bytes: 12595}, Down: stats.Traffic{Datagrams: 118, Bytes: 120000}, Drops: map[string]uint64{"source": 1}},
	})
	return r
}

func serverReport() Report {
	r := Report{Role: Server, PID: 1, At: noon.Add(50 * time.Hour), Started: noon, Listen: "[::]:8090"}
	r.setSessions([]Session{{
		ID: "1a2b3c4d", User: "alice", AgeSeconds: 1, Attached: true, Datagrams: Choice{1, "quic", "the client asks for it"}, Streams: Choice{1, "quic", "the client asks for it"},
		Carriers: []Carrier{{Number: 1, Transport: "quic", Remote: "198.51.100.7:50000", AgeSeconds: 1, Health: "good", ServesDatagrams: true, ServesNewStreams: true}},
	}})
	many := make([]Association, 1500)
	for i := range many {
		many[i] = Association{User: "alice", Exit: fmt.Sprintf("[::]:%d", 40000+i), Flow: uint64(i), AgeSeconds: 90, IdleSeconds: pointer(30), Up: stats.Traffic{Datagrams: uint64(i), Bytes: uint64(i)}}
	}
	r.setAssociations(many)
	return r
}

func TestTextHasShortTables(t *testing.T) {
	for _, test := range []struct {
		name   string
		report Report
	}{{"client", clientReport()}, {"server", serverReport()}} {
		t.Run(test.name, func(t *testing.T) {
			var got bytes.Buffer
			if err := test.report.WriteText(&got); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", test.name+".txt")
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

type full struct{}

var errFull = errors.New("full")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestWriteErrorIsReturned(t *testing.T) {
	r := serverReport()
	if err := r.WriteText(full{}); !errors.Is(err, errFull) {
		t.Errorf("got %v", err)
	}
}

func TestReportSurvivesJSON(t *testing.T) {
	want := clientReport()
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Report
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestListsAreBoundedAndNeverNull(t *testing.T) {
	r := serverReport()
	if len(r.Associations) != maxListed || r.AssociationsTotal != 1500 {
		t.Errorf("%d of %d associations", len(r.Associations), r.AssociationsTotal)
	}
	if busiest := r.Associations[0].Flow; busiest != 1499 {
		t.Errorf("flow %d comes first", busiest)
	}
	var events Events
	empty := Report{Events: events.List()}
	empty.setSessions(nil)
	empty.setAssociations(nil)
	b, err := json.Marshal(empty)
	if err != nil || strings.Contains(string(b), "null") {
		t.Errorf("%s, %v", b, err)
	}
}

func TestWholeSessionIsReported(t *testing.T) {
	address := &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9}
	loss := 0.125
	in := tunnel.SessionStatus{
		ID: "1a2b3c4d", User: "alice", Age: 1500 * time.Millisecond, Attached: true, Leaving: true, Detached: 2 * time.Second,
		Datagrams: tunnel.Choice{Carrier: 7, Why: "preferred"}, Streams: tunnel.Choice{Carrier: 9, Why: "it must be"},
		Carriers: []tunnel.CarrierStatus{{
			Number: 7, Kind: carrier.KindQUIC, Local: address, Remote: address, Age: time.Second, Heard: 250 * time.Millisecond, Datagrams: true, Streams: true,
			RTT: 1234567 * time.Nanosecond, Loss: &loss, Health: tunnel.HealthSuspect, Reason: "silent",
			BundlesUp: 1, BundlesDown: 2, BundleBytesUp: 3, BundleBytesDown: 4, OpenStreams: 5, SmallSegments: true, Congestion: "bbr",
			Path: carrier.Stats{RTT: time.Hour, BytesUp: 6, BytesDown: 7, PacketsUp: 8, PacketsLost: 9},
		}},
		Flows: 11, OpenStreams: 12, Drops: stats.Dropped{stats.Stale: 13},
	}
	want := Session{
		ID: "1a2b3c4d", User: "alice", AgeSeconds: 1.5, Attached: true, Leaving: true, DetachedSeconds: 2,
		Datagrams: Choice{7, "quic", "preferred"}, Streams: Choice{9, "", "it must be"},
		Carriers: []Carrier{{
			Number: 7, Transport: "quic", Local: "192.0.2.1:9", Remote: "192.0.2.1:9", AgeSeconds: 1, HeardSeconds: 0.25, ServesDatagrams: true, ServesNewStreams: true,
			RTTMillis: 1.234, Loss: &loss, Health: "suspect", Reason: "silent", OpenStreams: 5, SmallSegments: true, Congestion: "bbr",
			BundlesUp: 1, BundlesDown: 2, BundleBytesUp: 3, BundleBytesDown: 4, BytesUp: 6, BytesDown: 7, PacketsUp: 8, PacketsLost: 9,
		}},
		Associations: 11, OpenStreams: 12, Drops: map[string]uint64{"stale": 13},
	}
	if diff := cmp.Diff(want, FromSession(in)); diff != "" {
		t.Error(diff)
	}
	// A field that is added to one of them has to be thought of here.
	for _, v := range []any{in, in.Carriers[0]} {
		for field, value := range reflect.ValueOf(v).Fields() {
			if value.IsZero() {
				t.Errorf("the test leaves %s empty", field.Name)
			}
		}
	}
}
