package ratelimit

import (
	"context"
	"fmt"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// HoldStore is a [KindStore] with [KindInFlight]: it counts the holds of [InFlight] limits.
//
// It keeps a record for each process that has holds of a key: how many have begun there, how
// many have ended, and until when the record counts. A process says both totals in each call,
// and the store keeps the larger ones of these and its own. So a call that is lost, late or
// carried out twice leaves no count wrong for good. A process that was killed says nothing
// more, and its record ends by itself.
//
// A HoldStore that outlives the process must be a [RemoteStore], too. For other stores a
// limiter renews no records, and asks for records that last for 50 years.
type HoldStore interface {
	KindStore

	// Hold is Take for a key with an in-flight limit. There may be other limits, too. It is
	// one atomic step. results has one element more than r.Limits, the last
	// one for the in-flight limit.
	//
	// The present record of r.Process is the stored one, unless that has ended, with r.Began
	// and r.Ended where these are larger. Its holds are Began - Ended. What the call does
	// depends on its action:
	//
	//   - HoldLook changes nothing. Units is 0.
	//   - HoldAdd begins a hold, and takes the units, if the holds of all records that have
	//     not ended are less than r.Most and the units fit under every limit. Otherwise it
	//     does neither, and stores the present record if that says more than the stored one.
	//     A limit that denies by itself may start a block, also if there is no room for the hold.
	//   - HoldRenew stores the present record. Units is 0 and there are no Limits.
	//
	// A HoldAdd that begins a hold and a HoldRenew make the record last for r.Lasts from now
	// on, or as long as it would have lasted if that is longer. A record without holds is
	// deleted if r.Alone is set. Otherwise it stays, so that a call which is late cannot make it
	// again with totals that are older.
	//
	// The last result has a RetryAfter if there was no room: until the first of the records
	// ends. Its Remaining is how many holds may begin now, and its MoreAfter and ResetAfter
	// are until the first of the records ends, or 0 if there are no holds.
	Hold(ctx context.Context, r HoldRequest, results []Result) (HoldReply, error)
}

// HoldRequest is what a limiter asks of a [HoldStore].
type HoldRequest struct {
	Action HoldAction
	Key    string
	Most   int64         // how many holds of the key there may be at the same time
	Lasts  time.Duration // for how long the record counts

	Process      string // names the record: up to 32 letters, digits, hyphens and underscores
	Began, Ended int64  // how many holds of the key have begun and ended in the process, as far as it knows
	Alone        bool   // no other call of the process about the key is under way

	Units    int64 // as for Store.Take
	Limits   []Limit
	Pending  []Pending // as for KindStore.TakePending
	Deadline time.Time // of the call, in addition to its context's; zero for none
}

// validate returns an error for a request that no limiter makes.
func (r *HoldRequest) validate(results int) error {
	valid := r.Key != "" && r.Units >= 0 && results == len(r.Limits)+1 && r.holding().Valid()
	if !valid {
		return fmt.Errorf("Hold of %+v with %d results: want no negative numbers, a Process, and one result more than limits", *r, results)
	}
	return nil
}

// holding returns what the request asks about holds.
func (r *HoldRequest) holding() *rule.Holding {
	return &rule.Holding{
		Action: rule.HoldAction(r.Action), Most: r.Most, Lasts: int64(r.Lasts), Process: r.Process, Began: r.Began, Ended: r.Ended, Alone: r.Alone,
	}
}

// HoldAction is what a call of [HoldStore] does.
type HoldAction uint8

// What a HoldStore is asked to do.
const (
	HoldLook  HoldAction = iota // change nothing
	HoldAdd                     // begin a hold and take units, or neither
	HoldRenew                   // keep the record, and let it go on
)

// The numbers of package rule are the public ones. This does not compile if one differs.
const _ = uint(-(int(HoldLook) ^ int(rule.LookHolds) | int(HoldAdd) ^ int(rule.AddHold) | int(HoldRenew) ^ int(rule.RenewHolds)))

// HoldReply is what a [HoldStore] returns beside the results.
type HoldReply struct {
	At           Instant       // the time of the decision
	Began, Ended int64         // of the process's record after the call
	Others       int64         // holds in the records of other processes
	OthersLeft   time.Duration // until the last of these records ends
}

func holdReply(at Instant, h rule.Held) HoldReply {
	return HoldReply{At: at, Began: h.Began, Ended: h.Ended, Others: h.Others, OthersLeft: time.Duration(h.OthersLeft)}
}
