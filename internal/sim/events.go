package sim

// event is something that will happen to a process at an instant.
type event struct {
	at      int64
	seq     uint64 // orders the events of one instant
	do      action
	process *process
	trip    *trip
}

type action uint8

const (
	arrival    action = iota // of a request
	departure                // of a trip at the server
	reply                    // of its replies
	expiry                   // of calls that took too long
	sweep                    // of leases
	settlement               // of debts
)

func (e *event) run() {
	switch e.do {
	case arrival:
		e.process.arrive()
	case departure:
		e.process.run.server.serve(e.process, e.trip)
	case reply:
		e.process.finish(e.trip)
	case expiry:
		e.process.expire()
	case sweep:
		e.process.sweep()
	case settlement:
		e.process.settle()
	}
}

// at schedules an event.
func (r *run) at(instant int64, e event) {
	r.events.seq++
	e.at, e.seq = instant, r.events.seq
	r.events.push(e)
}

// events has the scheduled events, as a heap. container/heap would need a heap
// of pointers.
type events struct {
	heap []event
	seq  uint64
}

func (q *events) before(i, j int) bool {
	a, b := &q.heap[i], &q.heap[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

func (q *events) push(e event) {
	q.heap = append(q.heap, e)
	for i := len(q.heap) - 1; i > 0; {
		up := (i - 1) / 2
		if !q.before(i, up) {
			break
		}
		q.heap[i], q.heap[up] = q.heap[up], q.heap[i]
		i = up
	}
}

func (q *events) pop() event {
	first, last := q.heap[0], len(q.heap)-1
	q.heap[0] = q.heap[last]
	q.heap[last] = event{}
	q.heap = q.heap[:last]
	for i := 0; ; {
		least := i
		for _, down := range [...]int{2*i + 1, 2*i + 2} {
			if down < last && q.before(down, least) {
				least = down
			}
		}
		if least == i {
			return first
		}
		q.heap[i], q.heap[least] = q.heap[least], q.heap[i]
		i = least
	}
}
