package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// This file has the visitors of the shop. Nothing in it is for production.

// visitor sends requests from one address.
type visitor struct {
	ctx     context.Context
	shop    string // its URL
	address string
	apiKey  string
}

// sendTraffic starts the visitors and returns. They leave when ctx is done.
func sendTraffic(ctx context.Context, shop string) {
	for i := range 8 {
		v := &visitor{ctx, shop, fmt.Sprintf("198.51.100.%d", i+1), ""}
		go v.every(400*time.Millisecond, v.shopAround)
	}
	crawler := &visitor{ctx, shop, "192.0.2.10", ""}
	go crawler.every(2*time.Second, crawler.crawl)
	reseller := &visitor{ctx, shop, "192.0.2.20", "pro-1"}
	go reseller.every(5*time.Second, reseller.compare)
	attacker := &visitor{ctx, shop, "203.0.113.66", ""}
	go attacker.every(100*time.Millisecond, func() { attacker.post("/login", "password", fmt.Sprint(rand.Int())) })
}

// shopAround is a visit of a well-behaved client, which is never denied.
func (v *visitor) shopAround() {
	switch n := rand.IntN(40); {
	case n == 0:
		v.post("/login", "password", "correct horse")
	case n == 1:
		v.post("/checkout", "item", "hat")
	case n < 6:
		v.get("/search")
	default:
		v.get("/browse")
	}
}

// crawl sends a burst that does not fit the token bucket of browse, and searches like a
// program. It also goes through the checkout too quickly, which is in Shadow.
func (v *visitor) crawl() {
	for range 25 {
		v.get("/browse")
	}
	for range 3 {
		v.get("/search")
	}
	for range 4 {
		v.post("/checkout", "item", "shirt")
	}
}

// compare is a customer with a plan for bursts.
func (v *visitor) compare() {
	for range 30 {
		v.get("/search")
	}
}

// every calls visit until the context is done.
func (v *visitor) every(pause time.Duration, visit func()) {
	for v.ctx.Err() == nil {
		visit()
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-v.ctx.Done():
		}
	}
}

func (v *visitor) get(path string) { v.send(http.MethodGet, path, nil) }

func (v *visitor) post(path, field, value string) {
	v.send(http.MethodPost, path, strings.NewReader(url.Values{field: {value}}.Encode()))
}

func (v *visitor) send(method, path string, body io.Reader) {
	req, err := http.NewRequestWithContext(v.ctx, method, v.shop+path, body)
	if err != nil {
		return
	}
	req.Header.Set("X-Forwarded-For", v.address)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if v.apiKey != "" {
		req.Header.Set("X-API-Key", v.apiKey)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return // the shop is shutting down
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}
