package ratelimit

import (
	"errors"
	"fmt"
	"path/filepath"
)

// What a [ConflictError] is about, for errors.Is.
var (
	ErrNameTaken    = errors.New("ratelimit: the limiter's name is taken")
	ErrStoreShared  = errors.New("ratelimit: the store belongs to another limiter")
	ErrPrefixShared = errors.New("ratelimit: the prefix belongs to another limiter")
)

// ConflictError says that a limiter was refused because what it would count with
// belongs to another one. errors.Is finds out which: [ErrNameTaken],
// [ErrStoreShared] or [ErrPrefixShared].
type ConflictError struct {
	Limiter string // the limiter that was refused
	Site    string // file:line of the call that asked for it
	Holder  string // the limiter that was there first
	HeldAt  string // file:line of the call that made it
	Store   string // the type of the refused limiter's store, such as "MemoryStore"
	Prefix  string // that store's prefix

	kind    error
	unshare string // how to give each limiter a store of its own
}

// unshareAdvice says how to give each limiter a store of its own, in the words of
// the store if it has some.
func unshareAdvice(s Store) string {
	if own, ok := s.(adviceStore); ok {
		return own.unshare()
	}
	return fmt.Sprintf("make a new %s with a unique prefix for each limiter", storeName(s))
}

// Unwrap returns ErrNameTaken, ErrStoreShared or ErrPrefixShared.
func (e *ConflictError) Unwrap() error { return e.kind }

func (e *ConflictError) Error() string {
	site, heldAt := filepath.Base(e.Site), filepath.Base(e.HeldAt)
	both := fmt.Sprintf("ratelimit: limiter %q (%s) and limiter %q (%s)", e.Limiter, site, e.Holder, heldAt)
	switch e.kind {
	case ErrStoreShared:
		return fmt.Sprintf("%s share one %s (prefix %q): a Store must not be shared across limiters; %s",
			both, e.Store, e.Prefix, e.unshare)
	case ErrPrefixShared:
		return fmt.Sprintf("%s share the prefix %q: a prefix must not be shared across limiters, "+
			"whatever client or server it comes with; give each limiter's %s a unique prefix", both, e.Prefix, e.Store)
	case ErrNameTaken:
		return fmt.Sprintf("ratelimit: limiter %q (%s): the name is taken by the limiter made at %s; "+
			"give each limiter a name of its own, make it once and not inside a handler, "+
			"and use Reload to rebuild a configuration; in tests, make limiters with package ratelimittest, or close them", e.Limiter, site, heldAt)
	}
	return both + " are in conflict"
}
