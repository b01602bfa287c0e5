package ratelimit

import (
	"fmt"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file has what a limiter checks of a store before it counts there: whether the store
// counts what the limits need, and whether the store itself has anything against them.

// validateStore says why a store, or one that it wraps, cannot count under these
// limits, if so.
func validateStore(s Store, limits []Limit) error {
	for _, layer := range layers(s) {
		if v, ok := layer.(Validator); ok {
			if err := v.Validate(limits); err != nil {
				return err
			}
		}
	}
	if s == nil {
		return nil
	}
	return validateKinds(s, limits)
}

// kindStore returns the store as a KindStore that counts what a limiter needs, or an
// error that says why it is none.
func kindStore(s Store, need Kinds) (KindStore, error) {
	k, ok := s.(KindStore)
	if e, embeds := s.(embeddable); ok && embeds && e.embedded() != s {
		return nil, fmt.Errorf("%s (prefix %q) embeds a store of this package, so its own methods may hand on other limits: "+
			"hold the store in a field and implement KindStore, or use no %v", storeName(s), s.Prefix(), need)
	}
	if ok {
		need &^= k.Kinds()
	}
	if need != 0 {
		return nil, fmt.Errorf("%s (prefix %q) does not count %v: implement KindStore, use another store, or use no %[3]v", storeName(s), s.Prefix(), need)
	}
	return k, nil
}

// needs returns what a store must count for a limit, beside the three algorithms.
func needs(l *Limit) (need Kinds) {
	if l.blocks() {
		need |= KindBlock
	}
	if l.rule.Kind == rule.Rolling {
		need |= KindRolling
	}
	if l.calendar != nil {
		need |= KindCalendar
	}
	if l.isInFlight() {
		need |= KindInFlight
	}
	return need
}

// validateKinds returns an error if the store does not count what one of the limits
// needs. The error names both.
func validateKinds(s Store, limits []Limit) error {
	for _, l := range limits {
		if need := needs(&l); need != 0 {
			_, err := kindStore(s, need)
			if err == nil && l.isInFlight() {
				_, err = holdStore(s)
			}
			if err != nil {
				return fmt.Errorf("limit %v: %w", l, err)
			}
		}
	}
	return nil
}

// holdStore returns the store as a HoldStore, or an error that says why it is none.
func holdStore(s Store) (HoldStore, error) {
	k, err := kindStore(s, KindInFlight)
	if err != nil {
		return nil, err
	}
	h, ok := k.(HoldStore)
	if !ok {
		return nil, fmt.Errorf("%s (prefix %q) has KindInFlight and no method Hold: implement HoldStore", storeName(s), s.Prefix())
	}
	return h, nil
}
