package benchmarks

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	connections = 64
	slice       = 200 * time.Millisecond
)

// underLoad runs two servers on the loopback interface, one with the middleware and one
// without. It loads them in turn, so that a slow moment of the machine affects both. The
// load comes from this process and uses a part of the cores.
func underLoad(b *testing.B, open opener) {
	s := open(plenty)
	defer s.end()
	with, bare := listen(b, s.middleware(noContent)), listen(b, noContent)
	load(b, with, slice/4) // warms up
	load(b, bare, slice/4)
	var rates, ratios []float64
	for b.Loop() {
		for range 4 {
			w := load(b, with, slice)
			rates, ratios = append(rates, w), append(ratios, w/load(b, bare, slice))
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(Median(rates), "req/s")
	b.ReportMetric(Median(ratios), "x/bare")
}

// listen serves h until the end of b, and returns connections to it.
func listen(b *testing.B, h http.Handler) []net.Conn {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	server := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	b.Cleanup(func() { server.Close(); <-done })
	var all []net.Conn
	for range connections {
		c := must(net.Dial("tcp", l.Addr().String()))
		b.Cleanup(func() { c.Close() })
		all = append(all, c)
	}
	return all
}

// load sends requests during d. Each connection sends its next request as soon as it has
// the response. It returns the responses per second.
func load(b *testing.B, conns []net.Conn, d time.Duration) float64 {
	var wg sync.WaitGroup
	var answered atomic.Int64
	begin := time.Now()
	for _, c := range conns {
		wg.Go(func() {
			var buf [4096]byte
			c.SetDeadline(begin.Add(d + 10*time.Second))
			for n := int64(0); ; n++ {
				if time.Since(begin) >= d {
					answered.Add(n)
					return
				}
				if err := ask(c, buf[:]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return float64(answered.Load()) / time.Since(begin).Seconds()
}

var request = []byte("GET /items/42 HTTP/1.1\r\nHost: localhost\r\n\r\n")

// ask sends a request and reads the response, which must not have a body.
func ask(c net.Conn, buf []byte) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	for n := 0; ; {
		more, err := c.Read(buf[n:])
		if err != nil {
			return err
		}
		if n += more; !bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
			continue
		}
		if !bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 204 ")) {
			return fmt.Errorf("answer: %q", buf[:n])
		}
		return nil
	}
}
