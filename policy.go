package ratelimit

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/holds"
	"github.com/ratelimit-go/ratelimit/internal/recent"
	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// policy is a limiter's limits with everything that can be made of them before a
// request is there: their counting rules, their names, and the constant parts of
// header fields and problem details. It does not change.
type policy struct {
	given  []Limit // as the limiter got them
	limits []Limit // the limits of which the store counts units; none if always is set
	always *Limit  // Unlimited or Deny, if it decides alone

	// inFlight is the limit of which the store counts holds, or nil. Its result is the last
	// one, and so are its name and member.
	inFlight *Limit

	ladders *[MaxLimits]*rule.Ladder
	lasts   int64    // for how long units count, at most, under any of the limits
	single  bool     // there is one limit, without Block: a table's TakeOne decides
	plan    bool     // made of what Options.LimitsFor or a caller of TakeLimits has given
	names   []string // effective policy names
	entries []*countedPolicy
	numbers table.Policies // of entries
	shadow  table.Policies // numbers, for requests that Shadow would let through
	members []member       // one for each result

	rolling   bool // a limit is a rolling window
	calendars bool // a limit is of a calendar
	now       atomic.Pointer[present]
}

// A present is what of a policy changes with the periods of calendars. Without calendars
// there is one for the whole life of the policy.
type present struct {
	under    *engine.Limits // the limits that the store counts, for an engine
	declared string         // RateLimit-Policy of draft 10
	older    string         // RateLimit-Policy of drafts 7 and 6
	each     []string       // the members of declared

	// With calendars: until when all of the periods are in force, by package clock, and
	// what the wall clock was ahead of it.
	until, ahead int64
}

// maxDrift is how far the wall clock may have been set, in nanoseconds, before the ends of
// periods are worked out again.
const maxDrift = 1_000_000

// present returns what is in force now.
func (p *policy) present() *present {
	now := p.now.Load()
	if !p.calendars {
		return now
	}
	ahead := clock.WallAhead()
	if drift := ahead - now.ahead; max(drift, -drift) > maxDrift || clock.Now() >= now.until {
		now = p.newPresent()
		p.now.Store(now)
	}
	return now
}

func (p *policy) newPresent() *present {
	x := &present{until: math.MaxInt64, ahead: clock.WallAhead()} // before the periods, so that they are not older
	x.under = engineLimits(p.limits)
	if p.calendars {
		x.under.Refresh = func() *engine.Limits { return p.present().under }
	}
	var declared, older []byte
	separate := func(i int) {
		if i > 0 {
			declared, older = append(declared, ", "...), append(older, ", "...)
		}
	}
	for i := range p.limits {
		l := &x.under.Rules[i]
		if l.Kind == rule.Calendar {
			x.until = min(x.until, l.End())
		}
		separate(i)
		quota := strconv.FormatInt(l.N, 10) + ";w=" + strconv.FormatInt(seconds(time.Duration(l.Window)), 10)
		x.each = append(x.each, p.members[i].name+";q="+quota)
		declared, older = append(declared, x.each[i]...), append(older, quota...)
	}
	if p.inFlight != nil {
		separate(len(p.limits))
		quota := strconv.FormatInt(p.inFlight.N(), 10) + `;qu="concurrent-requests"`
		x.each = append(x.each, p.members[len(p.limits)].name+";q="+quota)
		declared, older = append(declared, x.each[len(p.limits)]...), append(older, quota...)
	}
	x.declared, x.older = string(declared), string(older)
	return x
}

// width is how many results a decision has: one for each limit that the store counts,
// or the one of Unlimited or Deny.
func (p *policy) width() int {
	if p.inFlight != nil {
		return len(p.limits) + 1
	}
	return max(1, len(p.limits))
}

// counted returns the limits that the store counts, in the order of the results.
func (p *policy) counted() []Limit {
	if p.inFlight != nil {
		return append(slices.Clip(p.limits), *p.inFlight)
	}
	return p.limits
}

// same reports whether two policies are of the same limits: a plan's may have been made
// twice.
func (p *policy) same(other *policy) bool { return p == other || slices.Equal(p.given, other.given) }

// sharesCounter reports whether a key has a counter under a limit of p that it also has
// under a limit of other.
func (p *policy) sharesCounter(other *policy) bool {
	return p == other || slices.ContainsFunc(p.limits, func(l Limit) bool {
		return slices.ContainsFunc(other.limits, l.sameCounter)
	})
}

// asksForHold returns what a request asks of its key's holds, under a policy with an in-flight
// limit. ends means that the hold ends by itself.
func (p *policy) asksForHold(ends bool) *holds.Ask {
	ask := &holds.Ask{Most: p.inFlight.N(), Lasts: p.inFlight.rule.Window}
	if ends {
		ask.Until = rule.Lasting(ask.Lasts, clock.Now())
	}
	return ask
}

// countsUnits returns an error if the policy has nothing but an in-flight limit, so that there
// are no units to give back or to charge.
func (p *policy) countsUnits() error {
	if p.inFlight == nil || len(p.limits) > 0 || p.always != nil {
		return nil
	}
	return fmt.Errorf("limit %v counts requests at the same time, and no units: add a limit that does", *p.inFlight)
}

// limit returns the limit of a result.
func (p *policy) limit(i int) *Limit {
	switch {
	case p.always != nil:
		return p.always
	case i == len(p.limits):
		return p.inFlight
	}
	return &p.limits[i]
}

// decides returns the result if always is set.
func (p *policy) decides() Result {
	if p.always.rule.Kind == kindDeny {
		return Result{RetryAfter: Never}
	}
	return Result{Remaining: rule.MaxUnits}
}

// countedUnder returns the limits for calls that only look whether the store answers:
// any, if no units are counted.
func (p *policy) countedUnder() *engine.Limits {
	if len(p.limits) == 0 {
		return engineLimits([]Limit{FixedWindow(1, time.Hour)})
	}
	return p.present().under
}

// member is the constant part of one limit in lists.
type member struct {
	name      string // "login"
	remaining string // "login";r=
	problem   string // "login" in JSON
}

func newPolicy(limiter string, limits []Limit) *policy {
	p := &policy{given: slices.Clone(limits)}
	p.limits = counted(p.given) // not of limits, which the caller may change later
	if len(p.limits) == 0 {
		p.always = &p.given[0] // Unlimited
	}
	if i := slices.IndexFunc(p.given, func(l Limit) bool { return l.rule.Kind == kindDeny }); i >= 0 {
		p.limits, p.always = nil, &p.given[i]
	}
	p.limits, p.inFlight = splitInFlight(p.limits)
	p.ladders, p.calendars = laddersOf(p.limits), anyCalendar(p.limits)
	p.rolling = slices.ContainsFunc(p.limits, func(l Limit) bool { return l.rule.Kind == rule.Rolling })
	for i := range p.limits {
		p.lasts = max(p.lasts, p.limits[i].rule.Lasts())
	}
	p.single = len(p.limits) == 1 && p.inFlight == nil && p.ladders == nil && !p.calendars
	if p.always != nil {
		p.names = policyNames(limiter, []Limit{*p.always})
		asJSON, _ := json.Marshal(p.names[0])
		p.members = []member{{problem: string(asJSON)}}
		p.now.Store(p.newPresent())
		return p
	}
	p.names = policyNames(limiter, p.counted())
	for i := range p.names {
		name := fieldString(p.names[i])
		asJSON, _ := json.Marshal(p.names[i]) // a valid string always has a form
		p.members = append(p.members, member{name: name, remaining: name + ";r=", problem: string(asJSON)})
	}
	p.now.Store(p.newPresent())
	return p
}

// declaredFor is the value of RateLimit-Policy, with the partition if there is one.
func (p *policy) declaredFor(partition string) string {
	now := p.present()
	if partition == "" {
		return now.declared
	}
	var b []byte
	for i, declared := range now.each {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(append(b, declared...), partition...)
	}
	return string(b)
}

// policyNames returns the name of each limit: its own, or the limiter's followed
// by as much of the limit as distinguishes it from the others.
func policyNames(limiter string, limits []Limit) []string {
	names := make([]string, len(limits))
	for i, l := range limits {
		names[i] = l.name
		if names[i] != "" {
			continue
		}
		names[i] = limiter
		if len(limits) == 1 {
			continue
		}
		names[i] += "-" + l.span()
		for j, other := range limits {
			if j != i && other.name == "" && other.span() == l.span() {
				if l.calendar != nil {
					names[i] = limiter + "-" + l.calendar.String()
				} else {
					names[i] += "-" + l.Algorithm()
				}
				break
			}
		}
	}
	return names
}

// span returns the window as in the name of a limit: "1m", "day" for a calendar, or "inflight".
func (l *Limit) span() string {
	switch {
	case l.calendar != nil:
		return l.calendar.Unit.String()
	case l.isInFlight():
		return l.Algorithm()
	}
	return rule.FormatSpan(l.rule.Window)
}

// validateLimits holds every rule for the limits of one limiter.
func validateLimits(limiter string, limits []Limit) error {
	if len(limits) == 0 {
		return errors.New("there is none: give at least one, such as FixedWindow(5, time.Hour)")
	}
	if len(limits) > MaxLimits {
		return fmt.Errorf("there are %d: want at most %d", len(limits), MaxLimits)
	}
	for i, l := range limits {
		if err := l.validate(); err != nil {
			return fmt.Errorf("number %d (%v): %w", i+1, l, err)
		}
		for j, other := range limits[:i] {
			if l.isInFlight() && other.isInFlight() {
				return fmt.Errorf("numbers %d (%v) and %d (%v) are both of InFlight, and a request has one hold: keep the stricter one", j+1, other, i+1, l)
			}
			if l.counts() && l.sameCounter(other) {
				return fmt.Errorf("numbers %d (%v) and %d (%v) have the same algorithm and window, and so one counter: "+
					"keep the stricter one", j+1, other, i+1, l)
			}
		}
	}
	limits = counted(limits)
	names := policyNames(limiter, limits)
	sent := make([]string, len(names))
	for i, name := range names {
		sent[i] = fieldString(name)
		if j := slices.Index(sent, sent[i]); j < i {
			return fmt.Errorf("numbers %d (%v) and %d (%v) both go by the name %q, which clients see as %s: give each its own with Named",
				j+1, limits[j], i+1, limits[i], name, sent[i])
		}
	}
	return nil
}

// otherOptions are the options that not all limits go with.
type otherOptions struct {
	lease, maxWait time.Duration
	recorded       bool // the store records each decision
}

// suit says why limits do not go with these options, if so.
func (o otherOptions) suit(limits []Limit) error {
	for _, l := range limits {
		if o.recorded && !l.counts() {
			return fmt.Errorf("limit %v decides without the store, and the store records each decision: leave it out, or use another store", l)
		}
		if o.lease > 0 && l.rule.Kind == rule.Rolling {
			// A leased unit is used later than it is counted, so there would be intervals with
			// more units.
			return fmt.Errorf("limit %v cannot be leased, and Options.Lease is %v: leave Lease out, or use SlidingWindow", l, o.lease)
		}
		if o.maxWait > 0 && l.blocks() {
			return fmt.Errorf("limit %v blocks a key whose request is denied, and Options.MaxWait is %v, for which a denied request waits: leave one of them out", l, o.maxWait)
		}
	}
	return nil
}

// plans caches the policies made of what Options.LimitsFor and callers of TakeLimits have
// returned: to make one costs far more than a decision. Nothing else is in it. What a plan
// has counted, owes or holds goes by the key and the limits, so it does not matter whether
// a plan's policy is made again, or there are two of it for a while.
type plans = recent.Cache[*policy]

// maxPlans bounds the memory for a LimitsFor that returns ever new limits, to about 4 MB.
const maxPlans = 2048

// planThrash is for how long a plan is unused, in nanoseconds, when it may be dropped
// without a warning.
const planThrash = int64(time.Minute)

// planHash returns the hash of limits by which their policy is found.
func planHash(limits []Limit) uint64 {
	var h recent.Hash
	for i := range limits {
		l := &limits[i]
		h = h.AddLimit(&l.rule).AddString(l.name)
		if l.blocks() {
			ladder := l.block.Value()
			for _, d := range ladder.first {
				h = h.Add(uint64(d))
			}
		}
	}
	return uint64(h)
}

// policyCounts has the names of the policies that a limiter has used, and counts what
// they deny. The zero value has none. It may be used from any number of goroutines.
type policyCounts struct {
	mu  sync.Mutex
	all []*countedPolicy // only ever appended to
}

// A countedPolicy is one name, or the entry of all names without one of their own.
type countedPolicy struct {
	name   string
	limit  Limit         // the latest one of that name; guarded by policyCounts.mu
	used   bool          // it has been in force; guarded by policyCounts.mu
	own    bool          // one of the limiter's own limits has had it; guarded by policyCounts.mu
	plan   bool          // a plan had it first
	number uint8         // its index, by which tables count
	denied atomic.Uint64 // by decisions that were not made in a table
}

// The most names that are counted apart, of plans and of a limiter's own limits. All
// further ones share the entry otherPolicies. Together they stay below table.Shadow.
const (
	maxPlanNames  = 64
	maxOwnNames   = 62
	otherPolicies = "other"
)

// register finds the policy's names, or adds them. The policy must not be in use yet.
func (c *policyCounts) register(p *policy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.entries = make([]*countedPolicy, p.width())
	for i, name := range p.names {
		counted := c.find(name, p.plan)
		p.entries[i], p.numbers[i], p.shadow[i] = counted, counted.number, counted.number|table.Shadow
	}
}

// use notes that a registered policy is in force. Until then its names are not in the
// statistics: the Reload that it is made in may fail.
func (c *policyCounts) use(p *policy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, counted := range p.entries {
		limit := *p.limit(i)
		counted.used, counted.own = true, counted.own || !p.plan
		switch {
		case counted.name == otherPolicies, p.plan && counted.own:
		case p.plan && limit.Named(counted.limit.name) == counted.limit:
			// It is the same limit. Package admin gives a limit its default name, to look under
			// that limit alone.
		default:
			counted.limit = limit
		}
	}
}

// find returns the entry for a name. c.mu must be held.
func (c *policyCounts) find(name string, plan bool) *countedPolicy {
	room := maxOwnNames
	if plan {
		room = maxPlanNames
	}
	var unused *countedPolicy // of a Reload that has failed, most likely
	for _, p := range c.all {
		if p.name == name {
			return p
		}
		if p.plan == plan {
			room--
			if !p.used && p.denied.Load() == 0 {
				unused = p
			}
		}
	}
	if room <= 0 && unused != nil && name != otherPolicies {
		unused.name = name
		return unused
	}
	if room <= 0 && name != otherPolicies {
		return c.find(otherPolicies, plan)
	}
	p := &countedPolicy{name: name, plan: plan, number: uint8(len(c.all))}
	c.all = append(c.all, p)
	return p
}

// stats returns what decisions outside of tables, and those in deniedBy, have denied.
func (c *policyCounts) stats(deniedBy []uint64) []PolicyStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]PolicyStats, len(c.all))
	for i, p := range c.all {
		all[i] = PolicyStats{p.name, p.limit, p.denied.Load()}
	}
	for i, denied := range deniedBy {
		all[min(i, len(all)-1)].Denied += denied // the last one, if a limiter that had the store before still denies
	}
	shown := all[:0]
	for i, p := range all {
		if c.all[i].used || p.Denied > 0 {
			shown = append(shown, p)
		}
	}
	return shown
}

// PolicyStats are what a limiter has counted of one of its limits. A denial counts for
// the limit that binds; see Decision.Limit.
type PolicyStats struct {
	Name   string // as in the header fields
	Limit  Limit  // the latest one of that name; zero for "other"
	Denied uint64
}

// usedLimits remembers one limit of each algorithm and window that a limiter
// has used: a key may have counters under these. The zero value is empty.
type usedLimits struct {
	mu      sync.Mutex
	limits  map[counterID]Limit
	order   []counterID // the keys of limits, in the order in which they were added; a ring of maxUsed
	oldest  int         // where the ring begins
	dropped bool        // there were more than maxUsed
}

// counterID is what two limits have in common if a key has one counter under
// both.
type counterID struct {
	kind     rule.Kind
	identity int64
}

// maxUsed bounds what SetLimits and LimitsFor with ever new windows pile up.
const maxUsed = 1024

// maxForgotten is how many limits a Reset or a Block has at most: a RedisStore does not
// accept more in one call.
const maxForgotten = 4096

// add remembers limits. If there are too many, it forgets the limits that were
// added first: their counters have most likely expired.
func (u *usedLimits) add(limits []Limit) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.limits == nil {
		u.limits = make(map[counterID]Limit)
	}
	for _, l := range limits {
		id := counterID{l.rule.Kind, l.rule.Identity()}
		if _, known := u.limits[id]; known {
			continue
		}
		u.limits[id] = l
		if len(u.order) < maxUsed {
			u.order = append(u.order, id)
			continue
		}
		delete(u.limits, u.order[u.oldest])
		u.order[u.oldest] = id
		u.oldest = (u.oldest + 1) % maxUsed
		u.dropped = true
	}
}

// with returns the limits of some policies together with the remembered ones, one of each
// algorithm and window, and at most maxForgotten. It reports whether any are missing. To
// find the limits of a plan that is dropped in the meantime, list the plans before the call.
func (u *usedLimits) with(policies []*policy) (limits []Limit, dropped bool) {
	all := make(map[counterID]Limit)
	add := func(l Limit) {
		id := counterID{l.rule.Kind, l.rule.Identity()}
		if _, known := all[id]; known || len(all) < maxForgotten {
			all[id] = l
		} else {
			dropped = true
		}
	}
	for _, p := range policies {
		for _, l := range p.limits {
			add(l)
		}
	}
	u.mu.Lock()
	for _, l := range u.limits {
		add(l)
	}
	dropped = dropped || u.dropped
	u.mu.Unlock()
	return slices.Collect(maps.Values(all)), dropped
}

// seconds rounds up: a client that waits so long has waited long enough.
func seconds(d time.Duration) int64 {
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return s
}

// fieldString writes s as a String of a structured field (RFC 9651, section
// 3.3.3). That holds printable ASCII only; a name with other characters is
// percent-encoded, with its percent signs.
func fieldString(s string) string {
	const hex = "0123456789ABCDEF"
	ascii := !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7e })
	b := []byte{'"'}
	for _, c := range []byte(s) {
		switch {
		case c > 0x7e || c == '%' && !ascii:
			b = append(b, '%', hex[c>>4], hex[c&15])
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '"'))
}
