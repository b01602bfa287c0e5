package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
)

// Registry knows which limiter owns which name, store and prefix, and refuses to
// give any of them away twice. The zero Registry is ready to use. A process
// normally has one, the [DefaultRegistry]; names and prefixes are a registry's
// own, but a store instance is refused across registries too.
//
// Methods may be called from any number of goroutines.
type Registry struct {
	_        noCopy
	limiters map[string]*Limiter // by name
	prefixes map[string]*Limiter // by their stores' prefix

	// A registry that a Reload is building:
	base   *Registry          // the registry that it replaces
	staged map[Store]*Limiter // its claims on stores, until it does
	over   bool               // the Reload has ended

	made uint64 // counts the limiters ever made here

	observers observers // of this registry's limiters, and of the limiters that a Reload builds for it
}

// DefaultRegistry is the registry of [New] and [Reload].
var DefaultRegistry = new(Registry)

// claims guards the maps of all registries, because what one of them claims
// concerns the others: stores holds the owner of each store in the process.
//
// It also orders what New, SetLimits, Close and a Reload do to one limiter: they hold
// it while they change which limiter and which limits are in force, and the record that
// its store keeps of them. Lookup waits for it, so it is held briefly: no store is asked,
// and no auditor, observer or logger is called.
var claims struct {
	sync.RWMutex
	stores map[Store]*Limiter
}

// New makes a limiter in r. The name is printable text of at most 128 bytes; it is
// shown to clients as the policy's name. Nothing is claimed where New returns an
// error: either one that names the option, its value and what to do, or a
// [*ConflictError].
func (r *Registry) New(name string, opts Options) (*Limiter, error) {
	if r == nil {
		return nil, fmt.Errorf("ratelimit: limiter %q: the Registry is nil: use new(Registry), or New for the default one", name)
	}
	l, err := newLimiter(name, opts)
	if err != nil {
		return nil, err
	}
	site, inHandler := callSite()
	l.site = site
	if err := r.claim(l); err != nil {
		return nil, err
	}
	if r.base == nil { // otherwise it begins when the Reload succeeds
		l.begin()
		l.logStore()
		if inHandler {
			l.report.warn(warnInHandler)
		}
	}
	return l, nil
}

// Lookup returns the limiter of that name.
func (r *Registry) Lookup(name string) (*Limiter, bool) {
	claims.RLock()
	defer claims.RUnlock()
	l, ok := r.limiters[name]
	return l, ok
}

// All returns the limiters by name, in the order of their names, as they are when
// the iteration starts.
func (r *Registry) All() iter.Seq2[string, *Limiter] {
	return func(yield func(string, *Limiter) bool) {
		claims.RLock()
		limiters := maps.Clone(r.limiters)
		claims.RUnlock()
		for _, name := range slices.Sorted(maps.Keys(limiters)) {
			if !yield(name, limiters[name]) {
				return
			}
		}
	}
}

// Close closes every limiter in r, whose handlers then answer 503. r can be used
// again afterwards. The error is always nil.
func (r *Registry) Close() error {
	claims.Lock()
	r.made++ // a Reload that is under way fails
	claims.Unlock()
	var errs []error
	for _, l := range r.All() {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// Reload replaces all limiters of r by the limiters that build makes in next, in one
// step and with their counters: a limiter takes over the name, the prefix and the
// store of the limiter with the same name. A [MemoryStore] is found again by name.
// next refuses everything that a registry refuses.
//
// If build returns an error or panics, or if another limiter is made in r in the
// meantime, nothing changes, and the limiters made in next are closed. Limiters that
// are replaced go on to serve the requests that still reach them, on the same counters
// and by their old settings. So rebuild handlers from the new limiters, and swap them
// in after Reload has returned without an error. next must not be used then.
//
// Reload may be called at any time. If two calls overlap, the second one to finish
// fails.
func (r *Registry) Reload(build func(next *Registry) error) error {
	if build == nil {
		return errors.New("ratelimit: Reload needs a build function")
	}
	if r.base != nil {
		return errors.New("ratelimit: Reload inside of a Reload's build function: make its limiters in next itself")
	}
	claims.RLock()
	next, made := &Registry{base: r}, r.made
	claims.RUnlock()

	done := false
	defer func() {
		if !done { // an error, a panic, or runtime.Goexit
			next.abandon()
		}
	}()
	if err := build(next); err != nil {
		return fmt.Errorf("ratelimit: Reload: nothing has changed: %w", err)
	}
	begun, err := next.replace(r, made)
	if err != nil {
		return fmt.Errorf("ratelimit: Reload: nothing has changed: %w", err)
	}
	done = true
	for _, g := range begun {
		if g.now != nil {
			g.now.begin()
		} else {
			g.was.endWork()
		}
	}
	for _, g := range begun { // only now, because observers may call Reload
		g.report()
	}
	return nil
}

// A succession is a limiter that a Reload has made, and the one that it has replaced.
// Either may be nil.
type succession struct {
	now, was                *Limiter
	policyNow, policyBefore *policy
}

// report logs and reports what the Reload has done. No lock may be held.
func (s *succession) report() {
	if s.now != nil {
		s.now.logStore()
	}
	switch {
	case s.was == nil:
	case s.now == nil:
		s.was.events.emit(context.Background(), Event{Kind: EventClosed})
	default:
		s.now.reportLimits(context.Background(), s.policyNow, s.policyBefore)
		s.was.events.emit(context.Background(), Event{Kind: EventReplaced})
	}
}

// Reload replaces all limiters of the [DefaultRegistry]; see [Registry.Reload].
func Reload(build func(next *Registry) error) error { return DefaultRegistry.Reload(build) }

// Observe calls fn for each event of r's limiters, now and in all later generations of
// a [Reload], until stop is called. An event that is on its way may still arrive after
// stop has returned. What fn must keep to is written at Options.Observe. Observers are
// called in the order in which they were added, after the limiter's own. A nil fn
// observes nothing. Inside of a Reload's build function, Observe observes the registry
// that is being reloaded, even if the Reload fails.
func (r *Registry) Observe(fn func(context.Context, Event)) (stop func()) {
	if fn == nil {
		return func() {}
	}
	o := r.root().observers.add(fn)
	return sync.OnceFunc(func() { r.root().observers.remove(o) })
}

// claim checks everything that l wants to own, and then takes it.
func (r *Registry) claim(l *Limiter) error {
	claims.Lock()
	defer claims.Unlock()
	if r.over {
		return fmt.Errorf("ratelimit: limiter %q: the Reload that this registry was for has ended; "+
			"make limiters inside its build function", l.name)
	}
	if err := r.check(l); err != nil {
		return err
	}
	if r.limiters == nil {
		r.limiters, r.prefixes = make(map[string]*Limiter), make(map[string]*Limiter)
	}
	l.events.registry = &r.root().observers
	if r.base != nil { // nobody has seen l yet
		if old := r.base.limiters[l.name]; old != nil {
			l.succeed(old)
		}
	}
	if r.base == nil {
		l.counts.use(l.memory, l.remote)
	}
	r.limiters[l.name] = l
	for _, prefix := range l.prefixes {
		r.prefixes[prefix] = l
	}
	for _, s := range l.layers {
		mapSet(r.stores(), s, l)
	}
	l.registry = r
	r.made++
	return nil
}

// check returns the first conflict between l and what others own. claims is
// locked, as it is for all that follows.
func (r *Registry) check(l *Limiter) error {
	if holder := r.limiters[l.name]; holder != nil {
		return l.conflict(ErrNameTaken, holder)
	}
	for _, s := range l.layers {
		if holder := r.staged[s]; holder != nil {
			return l.conflict(ErrStoreShared, holder)
		}
		if holder := claims.stores[s]; holder != nil && !r.succeeds(l, holder) {
			return l.conflict(ErrStoreShared, holder)
		}
	}
	for _, prefix := range l.prefixes {
		holder := r.prefixes[prefix]
		if holder == nil && r.base != nil {
			// The running limiter still counts there until the last request that it
			// serves is over.
			if holder = r.base.prefixes[prefix]; holder != nil && r.succeeds(l, holder) {
				holder = nil
			}
		}
		if holder != nil {
			e := l.conflict(ErrPrefixShared, holder)
			e.Prefix = prefix
			return e
		}
	}
	return nil
}

// succeeds reports whether l, of a generation being built, takes over from holder.
func (r *Registry) succeeds(l, holder *Limiter) bool {
	return r.base != nil && holder.registry == r.base && holder.name == l.name
}

// root returns the registry that a Reload builds r for, or r.
func (r *Registry) root() *Registry {
	if r.base != nil {
		return r.base
	}
	return r
}

// stores returns where r's claims on stores are kept.
func (r *Registry) stores() *map[Store]*Limiter {
	if r.base != nil {
		return &r.staged
	}
	return &claims.stores
}

// replace puts next's limiters into r, where its old ones were, and returns what has
// followed what. made is how many limiters r had made when the Reload began.
func (next *Registry) replace(r *Registry, made uint64) (begun []*succession, err error) {
	claims.Lock()
	defer claims.Unlock()
	if r.made != made {
		return nil, errors.New("a limiter was made, the registry was closed, or another Reload finished meanwhile; call it again")
	}
	for s, l := range next.staged { // another registry may have claimed one in the meantime
		if holder := claims.stores[s]; holder != nil && !next.succeeds(l, holder) {
			return nil, l.conflict(ErrStoreShared, holder)
		}
	}
	for name, l := range r.limiters {
		l.replaced.Store(true)
		if next.limiters[name] == nil {
			begun = append(begun, &succession{was: l})
		}
	}
	for name, l := range next.limiters {
		l.counts.use(l.memory, l.remote)
		s := &succession{now: l, was: r.limiters[name], policyNow: l.policy.Load()}
		if s.was != nil {
			s.policyBefore = s.was.policy.Load()
			l.used.add(s.policyBefore.limits) // SetLimits may have changed them since l was made
		}
		begun = append(begun, s)
	}
	r.retire()
	r.limiters, r.prefixes = next.limiters, next.prefixes
	next.limiters, next.prefixes, next.over = nil, nil, true
	for s, l := range next.staged {
		mapSet(&claims.stores, s, l)
		l.registry = r
	}
	r.made += next.made + 1
	return begun, nil
}

// abandon ends a Reload that has failed.
func (next *Registry) abandon() {
	claims.Lock()
	next.over = true
	limiters := slices.Collect(maps.Values(next.limiters))
	claims.Unlock()
	for _, l := range limiters {
		l.Close()
	}
}

// retire frees all that r's limiters claim, without closing them.
func (r *Registry) retire() {
	for _, l := range r.limiters {
		l.registry.release(l)
	}
}

// release frees all that l claims.
func (r *Registry) release(l *Limiter) {
	delete(r.limiters, l.name)
	for _, prefix := range l.prefixes {
		delete(r.prefixes, prefix)
	}
	for _, s := range l.layers {
		if (*r.stores())[s] == l {
			delete(*r.stores(), s)
		}
	}
	l.registry = nil
}

func mapSet[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[k] = v
}

// conflict is the error of l for something that belongs to holder.
func (l *Limiter) conflict(kind error, holder *Limiter) *ConflictError {
	return &ConflictError{
		Limiter: l.name, Site: l.site,
		Holder: holder.name, HeldAt: holder.site,
		Store: storeName(l.store), Prefix: l.prefixes[0],
		kind: kind, unshare: unshareAdvice(l.store),
	}
}
