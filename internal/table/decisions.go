package table

import (
	"math"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file counts decisions. Each shard counts its own ones, because its lock is
// held anyway when it decides, and [Table.Counts] adds them up. Which keys were
// decided is not recorded.

// Decisions are counts of decisions about at least one unit.
type Decisions struct {
	Allowed, Denied           uint64
	AllowedUnits, DeniedUnits uint64 // the units that they were about
	NearLimit                 uint64 // allowed, with at most a fifth of any limit left
	ShadowDenied              uint64 // denied for a caller that goes on nevertheless; not in Denied

	// DeniedBy has the denials by the number of the policy that has denied; see
	// [Policies]. Their sum is Denied.
	DeniedBy []uint64
}

// Policies numbers the limits of one call, for [Decisions.DeniedBy]. A number of
// Shadow or more means that a denial counts as ShadowDenied. Nil means that the call is
// not counted. The table neither keeps nor changes it.
type Policies [MaxLimits]uint8

// Shadow is the policy of denials that do not count as such.
const Shadow = 1 << 7

// AddUnits adds numbers of units. The sum stays at the largest int64: what a request costs
// may be a client's choice, and a count must not fall.
func AddUnits(a, b uint64) uint64 {
	if sum := a + b; sum >= a && sum <= math.MaxInt64 {
		return sum
	}
	return math.MaxInt64
}

// decisions are the counts of one shard, which must be locked. Most decisions are about
// one unit, and add to one of them: the units beyond that are apart.
type decisions struct {
	allowed, denied uint64
	moreAllowed     uint64
	near            uint64
	rare            *rareCounts // nil until the first of them, so that a shard stays small
}

// rareCounts are counts that most shards do not have.
type rareCounts struct {
	moreDenied             uint64
	shadow                 uint64
	deniedBy               []uint64 // by policy; policy 0, which has no entry, has the rest of denied
	evicted, evictedDenied uint64
}

// rarely returns the rare counts. It allocates the first time.
func (d *decisions) rarely() *rareCounts {
	if d.rare == nil {
		d.rare = new(rareCounts)
	}
	return d.rare
}

// allow counts an admission of n > 0 units.
func (d *decisions) allow(n int64, near bool) {
	d.allowed++
	if n > 1 {
		d.moreAllowed = AddUnits(d.moreAllowed, uint64(n-1))
	}
	if near {
		d.near++
	}
}

// deny counts a denial of n > 0 units by a policy.
func (d *decisions) deny(n int64, policy uint8) {
	if n > 1 || policy != 0 {
		d.denyRarely(n, policy)
		return
	}
	d.denied++
}

// denyRarely is deny for more than one unit, or a policy other than 0. It allocates the
// first time that a shard denies by that policy.
func (d *decisions) denyRarely(n int64, policy uint8) {
	r := d.rarely()
	if policy >= Shadow {
		r.shadow++
		return
	}
	d.denied++
	r.moreDenied = AddUnits(r.moreDenied, uint64(n-1))
	if policy == 0 {
		return
	}
	if int(policy) >= len(r.deniedBy) {
		r.deniedBy = append(r.deniedBy, make([]uint64, int(policy)+1-len(r.deniedBy))...)
	}
	r.deniedBy[policy]++
}

// decided counts a decision about n >= 0 units under several limits.
func (d *decisions) decided(n int64, admitted bool, limits []rule.Limit, answers []rule.Answer, policies *Policies) {
	switch {
	case n == 0, policies == nil:
	case admitted:
		d.allow(n, rule.NearLimit(limits, answers))
	default:
		d.deny(n, policies[rule.Binding(answers)])
	}
}

// add adds what a shard has counted. The shard must be locked.
func (sum *Decisions) add(d *decisions) {
	sum.Allowed += d.allowed
	sum.Denied += d.denied
	sum.AllowedUnits = AddUnits(sum.AllowedUnits, d.allowed+d.moreAllowed)
	sum.DeniedUnits = AddUnits(sum.DeniedUnits, d.denied)
	sum.NearLimit += d.near
	if len(sum.DeniedBy) == 0 {
		sum.DeniedBy = append(sum.DeniedBy, 0)
	}
	sum.DeniedBy[0] += d.denied
	r := d.rare
	if r == nil {
		return
	}
	sum.DeniedUnits = AddUnits(sum.DeniedUnits, r.moreDenied)
	sum.ShadowDenied += r.shadow
	if missing := len(r.deniedBy) - len(sum.DeniedBy); missing > 0 {
		sum.DeniedBy = append(sum.DeniedBy, make([]uint64, missing)...)
	}
	for i, denied := range r.deniedBy {
		sum.DeniedBy[i] += denied
		sum.DeniedBy[0] -= denied
	}
}
