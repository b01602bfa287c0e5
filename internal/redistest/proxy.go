package redistest

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// A Proxy forwards TCP connections to a target and injects faults of a network. All
// faults are off at first. They can be switched at any time, and act on existing
// connections and on new ones.
//
// If the target refuses a connection, the proxy resets the connection that it has
// accepted.
type Proxy struct {
	Addr string // host:port

	t  testing.TB
	wg sync.WaitGroup // of all goroutines

	mu       sync.Mutex
	target   string
	ln       net.Listener // nil while it refuses
	links    map[*link]struct{}
	accepted int64
	faults   faults
}

type faults struct {
	latency     time.Duration
	resetRate   float64
	loseReplies bool
	clear       chan struct{} // closed unless there is a black hole
}

// A link is a client's connection to the proxy, with the proxy's own connection
// to the target.
type link struct {
	client net.Conn
	done   chan struct{} // closed with the link

	target net.Conn // nil until dialled; guarded by Proxy.mu
}

// NewProxy runs a proxy to target, a host:port, until the test ends.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	p := &Proxy{Addr: address(freePort(t)), t: t, target: target, links: make(map[*link]struct{})}
	p.faults.clear = make(chan struct{})
	close(p.faults.clear)
	t.Cleanup(func() {
		p.Refuse(true)
		p.wg.Wait()
	})
	p.Refuse(false)
	return p
}

// Latency delays what is sent, in each direction, by d: a round trip takes 2d more.
func (p *Proxy) Latency(d time.Duration) { p.set(func(f *faults) { f.latency = d }) }

// ResetRate resets the connection for a fraction, from 0 to 1, of the chunks that are
// sent, in either direction. The chunk is lost. It may be a request that the target has
// not seen, or the reply to a request that it has executed.
func (p *Proxy) ResetRate(share float64) { p.set(func(f *faults) { f.resetRate = share }) }

// LoseReplies forwards what clients send, and drops what the target answers. When it is
// turned off, connections that have lost something are reset.
func (p *Proxy) LoseReplies(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults.loseReplies = on
	if !on {
		p.cut()
	}
}

// Blackhole accepts and keeps connections, but forwards nothing, not even their end. When
// it is turned off, older connections continue where they stopped. So the target gets
// requests whose senders have given up, as after a network partition. Connections that
// were accepted in the meantime are reset.
func (p *Proxy) Blackhole(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on == p.faults.blackhole() {
		return
	}
	if on {
		p.faults.clear = make(chan struct{})
		return
	}
	for l := range p.links {
		if l.target == nil {
			p.reset(l)
		}
	}
	close(p.faults.clear)
}

// Refuse resets all connections and refuses new ones, as if no process listened. When
// it is turned off, the proxy listens again on the same port.
func (p *Proxy) Refuse(on bool) {
	p.t.Helper()
	if !on {
		await(p.t, "proxy to listen", p.listen)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil {
		p.ln.Close()
		p.ln = nil
	}
	p.cut()
}

// Cut resets all connections. It still accepts new ones.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

// Retarget forwards new connections to another address. It leaves existing ones
// as they are; Cut ends them.
func (p *Proxy) Retarget(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = addr
}

// Open returns the number of connections that clients have with the proxy.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Accepted returns the number of connections made so far.
func (p *Proxy) Accepted() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

func (p *Proxy) set(change func(*faults)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.faults)
}

func (p *Proxy) now() faults {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults
}

func (f faults) blackhole() bool {
	select {
	case <-f.clear:
		return false
	default:
		return true
	}
}

func (p *Proxy) listen() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil {
		return nil
	}
	ln, err := net.Listen("tcp", p.Addr)
	if err != nil {
		return err
	}
	p.ln = ln
	p.wg.Go(func() { p.accept(ln) })
	return nil
}

func (p *Proxy) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return // closed
		}
		p.mu.Lock()
		l := &link{client: conn, done: make(chan struct{})}
		p.links[l] = struct{}{}
		p.accepted++
		if p.ln != ln {
			p.reset(l) // it refuses connections by now
		} else {
			p.wg.Go(func() { p.connect(l) })
		}
		p.mu.Unlock()
	}
}

// connect dials the target and starts to forward bytes. If Blackhole is on, it waits for
// the end of the link instead.
func (p *Proxy) connect(l *link) {
	f := p.now()
	if f.blackhole() {
		<-l.done // closed at the end of the black hole, or earlier
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p.wg.Go(func() {
		select {
		case <-l.done:
			cancel()
		case <-ctx.Done():
		}
	})
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	p.mu.Lock()
	defer p.mu.Unlock()
	_, alive := p.links[l]
	switch {
	case err != nil:
		p.reset(l)
	case !alive:
		conn.Close()
	default:
		l.target = conn
		p.wg.Go(func() { p.pump(l, l.client, conn, false) })
		p.wg.Go(func() { p.pump(l, conn, l.client, true) })
	}
}

// pump forwards what src sends, chunk by chunk, until the link is closed.
func (p *Proxy) pump(l *link, src, dst net.Conn, replies bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if !p.wait(l) {
			return
		}
		f := p.now()
		switch {
		case err != nil:
			p.mu.Lock()
			defer p.mu.Unlock()
			p.close(l)
			return
		case rand.Float64() < f.resetRate:
			p.mu.Lock()
			defer p.mu.Unlock()
			p.reset(l)
			return
		case replies && f.loseReplies:
		default:
			dst.Write(buf[:n]) // an error shows in a Read
		}
	}
}

// wait delays a chunk for as long as the faults require, and reports whether the link
// is still open after that.
func (p *Proxy) wait(l *link) bool {
	if d := p.now().latency; d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-l.done:
			return false
		}
	}
	select {
	case <-p.now().clear:
		return true
	case <-l.done:
		return false
	}
}

// cut resets all links. The caller must hold mu.
func (p *Proxy) cut() {
	for l := range p.links {
		p.reset(l)
	}
}

// reset ends a link so that both sides see a reset. The caller must hold mu.
func (p *Proxy) reset(l *link) {
	for _, conn := range []net.Conn{l.client, l.target} {
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.SetLinger(0) // an error says that it is closed
		}
	}
	p.close(l)
}

// close ends a link if it is still open. The caller must hold mu.
func (p *Proxy) close(l *link) {
	if _, alive := p.links[l]; !alive {
		return
	}
	delete(p.links, l)
	close(l.done)
	l.client.Close()
	if l.target != nil {
		l.target.Close()
	}
}
