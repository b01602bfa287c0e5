package table

import "github.com/ratelimit-go/ratelimit/internal/rule"

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
// Shadow or more means that a denial counts as ShadowDenied. Nil means 0 for all of
// them. The table neither keeps nor changes it.
type Policies [MaxLimits]uint8

// Shadow is the policy of denials that do not count as such.
const Shadow = 1 << 7

// decisions are the counts of one shard, which must be locked.
type decisions struct {
	allowed, denied uint64
	// Most decisions are about one unit. These are the units beyond that, so that
	// such a decision only writes one of the counts above.
	moreAllowed, moreDenied uint64
	near                    uint64
	shadow                  uint64
	deniedBy                []uint64 // by policy, without policy 0, which has the rest of denied
}

// allow counts an admission of n > 0 units.
func (d *decisions) allow(n int64, near bool) {
	d.allowed++
	if n > 1 {
		d.moreAllowed += uint64(n - 1)
	}
	if near {
		d.near++
	}
}

// deny counts a denial of n > 0 units by a policy. It allocates the first time that
// a shard denies by a policy other than 0.
func (d *decisions) deny(n int64, policy uint8) {
	if policy >= Shadow {
		d.shadow++
		return
	}
	d.denied++
	d.moreDenied += uint64(n - 1)
	if policy == 0 {
		return
	}
	if int(policy) >= len(d.deniedBy) {
		d.deniedBy = append(d.deniedBy, make([]uint64, int(policy)+1-len(d.deniedBy))...)
	}
	d.deniedBy[policy]++
}

// decided counts a decision about n >= 0 units under several limits.
func (d *decisions) decided(n int64, admitted bool, limits []rule.Limit, answers []rule.Answer, policies *Policies) {
	switch {
	case n == 0:
	case admitted:
		d.allow(n, rule.NearLimit(limits, answers))
	case policies == nil:
		d.deny(n, 0)
	default:
		d.deny(n, policies[rule.Binding(answers)])
	}
}

// add adds what a shard has counted. The shard must be locked.
func (sum *Decisions) add(d *decisions) {
	sum.Allowed += d.allowed
	sum.Denied += d.denied
	sum.AllowedUnits += d.allowed + d.moreAllowed
	sum.DeniedUnits += d.denied + d.moreDenied
	sum.NearLimit += d.near
	sum.ShadowDenied += d.shadow
	if missing := len(d.deniedBy) - len(sum.DeniedBy); missing > 0 {
		sum.DeniedBy = append(sum.DeniedBy, make([]uint64, missing)...)
	}
	if len(sum.DeniedBy) == 0 {
		sum.DeniedBy = append(sum.DeniedBy, 0)
	}
	others := uint64(0)
	for i, denied := range d.deniedBy {
		sum.DeniedBy[i] += denied
		others += denied
	}
	sum.DeniedBy[0] += d.denied - others
}
