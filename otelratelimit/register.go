package otelratelimit

import (
	"errors"
	"fmt"
	"reflect"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/embedded"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the life of a registration, from Register to Unregister. What a
// registration reports is in collect.go, its instruments are in instruments.go.

// scope is the name of the meter.
const scope = "github.com/ratelimit-go/ratelimit/otelratelimit"

// Register reports the counts of all limiters in reg to mp, until Unregister is
// called on the returned Registration. The package documentation lists the
// metrics.
//
// A nil reg means [ratelimit.DefaultRegistry]. A nil mp means
// [otel.GetMeterProvider], which may be set later.
//
// Call Register once, when the program starts. It needs no limiters yet, and must
// not be called with the registry that a Reload passes to its build function. It
// returns an error if reg is registered with mp already, because every request
// would then be counted twice, or if mp refuses an instrument. Then nothing has
// been registered. Register does not recognize the global provider and the SDK's
// provider behind it as one, so use a nil mp everywhere or nowhere.
//
// Registries that share an mp should not use the same limiter names. Their numbers
// cannot be distinguished.
func Register(reg *ratelimit.Registry, mp metric.MeterProvider) (metric.Registration, error) {
	if reg == nil {
		reg = ratelimit.DefaultRegistry
	}
	if mp == nil {
		mp = otel.GetMeterProvider()
	}
	r := &registration{registry: reg, claim: claim{reg, mp}}
	if err := r.claim.take(); err != nil {
		return nil, err
	}
	if err := r.begin(mp.Meter(scope)); err != nil {
		r.claim.release()
		return nil, fmt.Errorf("otelratelimit: Register: the MeterProvider refused an instrument: %w", err)
	}
	return r, nil
}

// A registration is what Register returns.
type registration struct {
	embedded.Registration

	registry *ratelimit.Registry
	claim    claim
	inner    metric.Registration // of the callback
	instruments

	unregister sync.Mutex // guards done
	done       bool

	collecting sync.Mutex // guards lives; held while numbers are read
	lives      map[string]*life
}

// begin makes the instruments and registers their callback.
func (r *registration) begin(meter metric.Meter) error {
	b := builder{meter: meter}
	r.instruments = b.instruments()
	if err := errors.Join(b.errs...); err != nil {
		return err
	}
	inner, err := meter.RegisterCallback(r.collect, b.all...)
	if err != nil {
		if inner != nil { // some instruments were valid
			err = errors.Join(err, inner.Unregister())
		}
		return err
	}
	r.inner = inner
	return nil
}

// Unregister ends the registration. Further calls do nothing.
func (r *registration) Unregister() error {
	r.unregister.Lock()
	defer r.unregister.Unlock()
	if r.done {
		return nil
	}
	if err := r.inner.Unregister(); err != nil {
		return err
	}
	r.done = true
	r.claim.release()
	return nil
}

// A claim keeps a registry from being registered twice with one provider. An SDK adds
// up what two callbacks observe for the same attributes.
type claim struct {
	registry *ratelimit.Registry
	provider metric.MeterProvider
}

var claims struct {
	sync.Mutex
	taken map[claim]struct{}
}

// take fails if an equal claim has been taken.
func (c claim) take() error {
	if !c.comparable() {
		return nil
	}
	claims.Lock()
	defer claims.Unlock()
	if _, taken := claims.taken[c]; taken {
		return errors.New("otelratelimit: Register: this registry is registered with this MeterProvider already, " +
			"so every request would be counted twice: call Register once, or Unregister on its result first")
	}
	if claims.taken == nil {
		claims.taken = make(map[claim]struct{})
	}
	claims.taken[c] = struct{}{}
	return nil
}

func (c claim) release() {
	if !c.comparable() {
		return
	}
	claims.Lock()
	defer claims.Unlock()
	delete(claims.taken, c)
}

// comparable reports whether the claim can be a key of a map. A provider of
// another make need not be a pointer.
func (c claim) comparable() bool { return reflect.ValueOf(c.provider).Comparable() }
