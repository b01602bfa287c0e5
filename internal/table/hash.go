package table

import (
	"hash/maphash"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// keyHash identifies a key: 64 bits to find its shard, and 64 bits to find its slot.
type keyHash struct{ shard, slot uint64 } // not an array, which would not be returned in registers

// secret has the seeds that keys are hashed with. A client does not know them, so it
// can neither choose keys that collide, nor fill one shard or hash bucket.
type secret [2]maphash.Seed

func newSecret() secret { return secret{maphash.MakeSeed(), maphash.MakeSeed()} }

func (s *secret) hash(key string) keyHash {
	return keyHash{maphash.String(s[0], key), maphash.String(s[1], key)}
}

func (t *Table) hash(key string) keyHash {
	if t.kept != nil {
		return t.kept.hash(key)
	}
	return t.secret.hash(key)
}

// id returns the fingerprint of a key's counter under a limit. It mixes in kind and
// window, or the number of a calendar, with an odd factor, which maps different pairs to
// different values. Kinds 1 to 3 are the low bits of the number that is multiplied. Kind 4
// has low bits of 0: it is added, so two windows have two numbers. A window has 61 bits, so
// the highest bit is left for calendars. The hash is secret, and so is the result.
func (h keyHash) id(l *rule.Limit) id {
	identity := uint64(l.Window)<<2 + uint64(l.Kind)
	if l.Kind == rule.Calendar {
		identity = 1<<63 | uint64(l.Number)
	}
	x := h.slot ^ identity*0x9e3779b97f4a7c15
	return max(id(x).fingerprint(), maxShapes)
}

// fill sets ids to the fingerprints under limits.
func (h keyHash) fill(ids *[MaxLimits]id, limits []rule.Limit) []id {
	for i := range limits {
		ids[i] = h.id(&limits[i])
	}
	return ids[:len(limits)]
}
