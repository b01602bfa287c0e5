package table

import (
	"hash/maphash"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// keyHash is what is known of a key: 64 bits to find its shard, 64 to find its slot.
type keyHash struct{ shard, slot uint64 } // no array, which would not be returned in registers

// secret is what hashes keys. A client does not know it, so it can neither choose keys
// that meet, nor fill one shard or bucket with its own.
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

// id is the fingerprint of a key's counter under a limit. Kind and window are folded
// in by an odd factor, which keeps all of their bits apart; the hash is secret, and
// so is the sum.
func (h keyHash) id(l *rule.Limit) id {
	x := h.slot ^ (uint64(l.Window)<<2|uint64(l.Kind))*0x9e3779b97f4a7c15
	return max(id(x).fingerprint(), maxShapes)
}

// fill sets ids to the fingerprints under limits.
func (h keyHash) fill(ids *[MaxLimits]id, limits []rule.Limit) []id {
	for i := range limits {
		ids[i] = h.id(&limits[i])
	}
	return ids[:len(limits)]
}
