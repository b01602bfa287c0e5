//go:build linux

package pgtest

import "testing"

func TestServer(t *testing.T) {
	s := Start(t)
	for _, step := range []struct {
		name string
		do   func()
		want bool // whether it is ready after that
	}{
		{"killed", s.Kill, false},
		{"started again", func() { s.Restart() }, true},
		{"hung", s.Hang, false},
		{"continued", s.Continue, true},
		{"stopped", s.Stop, false},
		{"started with another setting", func() { s.Restart("max_connections=20") }, true},
	} {
		step.do()
		if got := s.isReady(); got != step.want {
			t.Fatalf("%s: ready is %v, want %v", step.name, got, step.want)
		}
	}
}
