package sharedstore

import (
	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"

	"example.com/vet/sharedstore/helper"
)

var client redis.UniversalClient

// 1: a variable.
func variable() error {
	store, err := ratelimit.NewRedisStore(client, "shop:")
	if err != nil {
		return err
	}
	if _, err := ratelimit.New("login", ratelimit.Options{Store: store}); err != nil {
		return err
	}
	alias := store
	_, err = ratelimit.New("api", ratelimit.Options{Store: alias}) // want `this limiter shares its store \(prefix "shop:"\) with the one of shapes.go:19`
	return err
}

// 2: a variable of the package, and two functions.
var shared = ratelimit.Memory("shared")

func first(r *ratelimit.Registry) { r.New("first", ratelimit.Options{Store: shared}) }

func second(r *ratelimit.Registry) { r.New("second", ratelimit.Options{Store: shared}) } // want `shares its store \(prefix "memory:shared"\)`

// 3: options that are used twice.
func options() {
	opts := ratelimit.Options{Store: ratelimit.Memory("options")}
	ratelimit.Must(ratelimit.New("login", opts))
	ratelimit.Must(ratelimit.New("api", opts)) // want `shares its store`

	var more ratelimit.Options
	more.Store = ratelimit.Memory("more")
	ratelimit.New("mail", more)
	ratelimit.New("sms", more) // want `shares its store`
}

// 4: functions that make limiters.
func make1(name string, store ratelimit.Store) *ratelimit.Limiter { // want make1:"givesStore\\(1\\)" make1:"makes"
	return ratelimit.Must(ratelimit.New(name, ratelimit.Options{Store: store}))
}

func make2(store ratelimit.Store, name string) *ratelimit.Limiter { return make1(name, store) } // want make2:"givesStore\\(0\\)" make2:"makes"

func helpers(store ratelimit.Store) { // want helpers:"givesStore\\(0\\)"
	make1("login", store)
	make2(store, "api") // want `shares its store`
}

func calls() {
	store, _ := ratelimit.NewMemoryStore("calls", ratelimit.MemoryOptions{})
	make1("login", store)
	make2(store, "api")                                     // want `shares its store`
	helper.Limiter("mail", ratelimit.Options{Store: store}) // want `shares its store`
	build := func(name string, s ratelimit.Store) { make1(name, s) }
	build("sms", store) // want `shares its store`
}

// 5: a loop.
func loop(names []string) {
	store := ratelimit.Memory("loop")
	for _, name := range names {
		ratelimit.New(name, ratelimit.Options{Store: store}) // want `each limiter of this loop gets the same store`
	}
	for _, name := range names {
		ratelimit.New(name, ratelimit.Options{Store: ratelimit.Memory(name)})
	}
	for _, route := range names {
		store, _ := ratelimit.NewRedisStore(client, "rl:")    // the same prefix in each round
		ratelimit.New(route, ratelimit.Options{Store: store}) // want `each limiter of this loop gets the same store`
	}
}

// 6: one prefix literal.
func prefixes() {
	a, _ := ratelimit.NewRedisStore(client, "rl:both:")
	b, _ := ratelimit.NewRedisStore(client, "rl:both:")
	ratelimit.New("a", ratelimit.Options{Store: a})
	ratelimit.New("b", ratelimit.Options{Store: b}) // want `shares its store \(prefix "rl:both:"\)`
}

// 7: a field.
type service struct {
	store      ratelimit.Store
	login, api *ratelimit.Limiter
}

func (s *service) openLogin() { s.login, _ = ratelimit.New("login", ratelimit.Options{Store: s.store}) }
func (v *service) openAPI()   { v.api, _ = ratelimit.New("api", ratelimit.Options{Store: v.store}) } // want `shares its store`

// 8: a wrapper.
type counted struct{ ratelimit.Store }

func (c counted) Unwrap() ratelimit.Store { return c.Store }

func wrap(s ratelimit.Store) ratelimit.Store { return &counted{s} }

func wrappers() {
	store := ratelimit.Memory("wrapped")
	ratelimit.New("login", ratelimit.Options{Store: counted{store}})
	ratelimit.New("api", ratelimit.Options{Store: &counted{Store: store}}) // want `shares its store`
	ratelimit.New("mail", ratelimit.Options{Store: wrap(store)})           // want `shares its store`
}

// What is right, or not known.
func right(persistent bool, r *ratelimit.Registry) (*ratelimit.Limiter, error) { // want right:"makes"
	ratelimit.New("a", ratelimit.Options{Redis: client})
	ratelimit.New("b", ratelimit.Options{Redis: client})
	ratelimit.New("c", ratelimit.Options{Store: ratelimit.Memory("c")})
	ratelimit.New("d", ratelimit.Options{Store: ratelimit.Memory("d")})

	store := ratelimit.Memory("one name")
	ratelimit.New("same", ratelimit.Options{Store: store})
	r.New("same", ratelimit.Options{Store: store}) // a next generation of it

	var changed ratelimit.Store = ratelimit.Memory("x")
	ratelimit.New("x", ratelimit.Options{Store: changed})
	changed = ratelimit.Memory("y")
	ratelimit.New("y", ratelimit.Options{Store: changed})

	var none ratelimit.Store
	ratelimit.New("m", ratelimit.Options{Store: none})
	ratelimit.New("n", ratelimit.Options{Store: none})

	either := ratelimit.Memory("either")
	if persistent {
		ratelimit.New("p", ratelimit.Options{Store: either})
	} else {
		ratelimit.New("q", ratelimit.Options{Store: either})
	}
	switch {
	case persistent:
		ratelimit.New("p", ratelimit.Options{Store: ratelimit.Memory("switch")})
	default:
		ratelimit.New("q", ratelimit.Options{Store: ratelimit.Memory("switch")})
	}
	last := ratelimit.Memory("last")
	if persistent {
		return ratelimit.New("r", ratelimit.Options{Store: last})
	}
	return ratelimit.New("s", ratelimit.Options{Store: last})
}

func ignored() {
	store := ratelimit.Memory("ignored")
	ratelimit.New("t", ratelimit.Options{Store: store})
	//ratelimitvet:ignore this shows that the comment works
	ratelimit.New("u", ratelimit.Options{Store: store})
	ratelimit.New("v", ratelimit.Options{Store: store}) //ratelimitvet:ignore and here
	//ratelimitvet:ignore
	ratelimit.New("w", ratelimit.Options{Store: store}) // want `shares its store`
}
