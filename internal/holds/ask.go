package holds

import "github.com/ratelimit-go/ratelimit/internal/rule"

// An Ask says what a request wants of the holds of its key.
type Ask struct {
	Most  int64 // how many there may be at the same time
	Lasts int64 // how long one outlives its process
	Until int64 // when it ends by itself; 0 for the hold of a request
}

// Begin is [Book.Begin] for a request of some units: for a hold, or to look if there are none.
// lasts is for how long the store's record counts.
func (a *Ask) Begin(b *Book, key string, units, lasts, now int64) (Call, rule.Holding) {
	action := rule.AddHold
	if units == 0 {
		action = rule.LookHolds
	}
	return b.Begin(action, key, a.Most, lasts, now)
}

// Answered is [Book.Answered] for what the store has answered to a request. fits is whether
// its units fit. The hold is nil if the request has got none; then the answer is a denial,
// unless the request only looked or its units did not fit.
func (a *Ask) Answered(b *Book, key string, c Call, h *rule.Holding, fits bool, now int64) (hold *Hold, answer rule.Answer) {
	granted := h.Action == rule.AddHold && fits && !h.Held.Denied
	hold = b.Answered(c, h, granted, a.Until, now)
	left, soonest := a.Most-h.Held.Others-(h.Held.Began-h.Held.Ended), h.Held.Soonest
	if own, ends := b.Left(key, a.Most, a.Lasts, now); own < a.Most {
		soonest = min(soonest, ends) // a hold of Acquire ends by itself before the record does
	}
	return hold, a.answer(left, soonest, h.Held.Denied || granted && hold == nil)
}

// Here is the answer from what this process knows. denied is about one more.
func (a *Ask) Here(b *Book, key string, denied bool, now int64) rule.Answer {
	left, soonest := b.Left(key, a.Most, a.Lasts, now)
	return a.answer(left, soonest, denied)
}

// answer returns the answer about holds of a key of which some are left, if the first of them
// lasts for soonest.
func (a *Ask) answer(left, soonest int64, denied bool) (answer rule.Answer) {
	answer.Remaining = max(0, left)
	if left < a.Most {
		answer.More, answer.Reset = max(1, min(soonest, a.Lasts)), a.Lasts
	}
	if denied {
		answer.Retry = max(1, answer.More)
	}
	return answer
}
