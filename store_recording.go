package ratelimit

import "fmt"

// This file has stores that write records of an audit trail by themselves.

// RecordingStore is a [RemoteStore] that writes the records of an audit trail in the same
// transaction as what they are about: both, or neither. Package postgres has one, for its
// option WithAudit.
//
// A limiter does not hand the calls that such a store records to Options.Audit. It adds
// what the record needs to the context of the store's method; see [RecordableFrom]. If the
// method returns an error, a call by hand has changed nothing in this process either. It is
// not made later, whatever Options.OnFailure says.
//
// With [RecordsDecisions] only the store decides: [New] wants OnFailure to be FailClosed,
// refuses Lease, MaxWait, Shadow and the limits [Unlimited] and [Deny], and no denial is
// cached in the process, whatever DenyRecheck says. [Limiter.Wait] returns an error.
//
// A wrapper of such a store must be one, too. It hands the context on.
type RecordingStore interface {
	RemoteStore

	// Records returns what the store records. auditor is Options.Audit of the limiter, or nil.
	// [New] returns its error, for an auditor that the store cannot make records with. It is
	// called more than once, and must return the same each time.
	Records(auditor Auditor) (Recording, error)
}

// recordingOf returns what a store records for a limiter.
func recordingOf(s Store, auditor Auditor) (Recording, error) {
	for i, layer := range layers(s) {
		store, ok := layer.(RecordingStore)
		if !ok {
			continue
		}
		records, err := store.Records(auditor)
		if err != nil {
			return RecordsNothing, err
		}
		if records > RecordsNothing && i > 0 {
			return RecordsNothing, fmt.Errorf("Options.Store is a %s that wraps a %s with an audit trail: "+
				"implement RecordingStore in the wrapper, and hand the contexts of all calls on", storeName(s), storeName(layer))
		}
		if i == 0 {
			return records, nil
		}
	}
	return RecordsNothing, nil
}
