package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/internal/batch"
	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/storekit"
)

// This file carries out the calls that share a round trip. Calls for one key form a group.
// Groups of usual takes go to a function take_*, one statement for all groups with the same
// limits (fast.go). What is left goes a second way, which can do everything: look at the
// rows, count here, and write each row if it has not changed in the meantime.
//
// No statement is sent again after it may have been carried out. A statement that has written
// nothing, because others were first, is made again from a new look.

type job = batch.Call[call]

// callTimeout bounds a round trip whose callers have all gone. Then the connection is closed.
const callTimeout = 5 * time.Second

// A group has the calls of a batch for one key, in the order in which they came.
type group struct {
	key    string
	jobs   []*job
	newest bool // answered has found the newest call
}

// A trip is one round trip, or several in a row if a row is missing or has changed.
type trip struct {
	*Store
	ctx  context.Context
	conn *pgxpool.Conn
	open *opened

	lockTimeout bool // a statement has waited too long for a lock
}

// send carries out a batch. The queue calls it on a goroutine of its own. ctx is never done,
// and has the latest deadline of the callers.
func (s *Store) send(ctx context.Context, jobs []*job) {
	values := context.WithoutCancel(ctx)
	until := time.Now().Add(callTimeout)
	if last, ok := ctx.Deadline(); ok && last.Before(until) {
		until = last // after that no caller waits for a connection
	}
	waiting, cancel := context.WithDeadline(values, until)
	conn, err := s.pool.Acquire(waiting)
	cancel()
	if err != nil {
		if !errors.As(err, new(*pgconn.ConnectError)) && waiting.Err() != nil {
			err = fmt.Errorf("%w: %w", errNoConnection, err)
		}
		s.failAll(jobs, s.explain(err, false))
		return
	}
	defer conn.Release()
	// The context of a caller would close the connection when it ends.
	sent, cancel := context.WithTimeout(values, callTimeout)
	defer cancel()
	t := &trip{Store: s, ctx: sent, conn: conn}
	if t.open, err = s.opened(sent, conn); err != nil {
		s.failAll(jobs, err)
		return
	}
	t.carryOut(jobs)
	s.sweepSometimes()
}

func (s *Store) failAll(jobs []*job, err error) {
	for _, j := range jobs {
		j.Value.err = err
	}
}

// carryOut carries out calls on an open connection.
func (t *trip) carryOut(jobs []*job) {
	groups := t.leaveOut(t.group(jobs))
	var slow, recorded []*group
	bySet := make(map[*limitSet][]*group, 1)
	for _, g := range groups {
		if g.isRecorded() {
			recorded = append(recorded, g)
		} else if g.isFast() {
			set := g.jobs[0].Value.set
			bySet[set] = append(bySet[set], g)
		} else {
			slow = append(slow, g)
		}
	}
	for set, of := range bySet {
		slow = append(slow, t.takeFast(set, of)...)
	}
	t.count(slow)
	t.count(recorded) // in statements of their own, because they fail if the records cannot be written
	if t.lockTimeout {
		t.findLocked(groups, true)
	}
}

// isRecorded reports whether a call of the group has a record.
func (g *group) isRecorded() bool {
	return slices.ContainsFunc(g.jobs, func(j *job) bool { return j.Value.recording != nil })
}

// group divides calls by key.
func (t *trip) group(jobs []*job) []*group {
	groups := make([]*group, 0, len(jobs))
	byKey := make(map[string]*group, len(jobs))
	for _, j := range jobs {
		c := &j.Value
		g := byKey[c.key]
		if g == nil {
			g = &group{key: t.open.prefix + c.key}
			byKey[c.key] = g
			groups = append(groups, g)
		}
		g.jobs, c.of = append(g.jobs, j), g
	}
	return groups
}

// sortByKey puts groups in the order in which their rows are locked, and in which the
// functions search for keys.
func sortByKey(groups []*group) {
	slices.SortFunc(groups, func(a, b *group) int { return strings.Compare(a.key, b.key) })
}

// answered marks the newest answer about each key, which belongs to the last caller that is
// still waiting. The queue calls it with the calls of a batch whose callers have waited.
func answered(jobs []*job) {
	for _, j := range slices.Backward(jobs) {
		c := &j.Value
		if c.of != nil && !c.of.newest {
			c.of.newest, c.newest = true, true
		}
		c.of = nil
	}
}

// maxLooks is how many times a row is read before its calls fail, because other processes
// have changed it each time.
const maxLooks = 50

// count carries out calls of any kind: it looks at the rows, counts, and writes.
func (t *trip) count(groups []*group) {
	for range maxLooks {
		if len(groups) == 0 {
			return
		}
		groups = t.countOnce(groups)
	}
	for _, g := range groups {
		t.failAll(g.jobs, t.fail(ratelimit.FaultRefused, errors.New("other processes have changed the row of the key each time before this one could"), ""))
	}
}

// A change is a row to write, and the calls that change it.
type change struct {
	group *group
	row   row
	written
}

// countOnce returns the groups of rows that others have changed in the meantime.
func (t *trip) countOnce(groups []*group) (again []*group) {
	sortByKey(groups)
	rows, now, err := t.look(groups)
	if err != nil {
		for _, g := range groups {
			t.failAll(g.jobs, err)
		}
		return nil
	}
	var updates, inserts []change
	var unchanged []*group // with records
	for i, g := range groups {
		shape, err := t.open.limitsOf(t, rows[i].shape)
		var rec *storekit.Record
		if err == nil {
			if rec, err = rows[i].read(shape); err != nil {
				err = t.fail(ratelimit.FaultKey, fmt.Errorf("the row of the key %q was not written by this library: %w", g.jobs[0].Value.key, err),
					"delete it from ratelimit.counter, and keep what writes it off this table")
			}
		}
		if err != nil {
			t.failAll(g.jobs, err)
			continue
		}
		for _, j := range g.jobs {
			if j.Value.err = j.Value.apply(rec, now); j.Value.err != nil {
				j.Value.err = t.fail(ratelimit.FaultKey, j.Value.err, "")
			}
		}
		if !rec.Changed() {
			if g.isRecorded() {
				unchanged = append(unchanged, g)
			}
			continue
		}
		c := change{group: g, row: rows[i]}
		// A take under limits that have columns gives the row its shape. Other calls keep it.
		if set := g.jobs[len(g.jobs)-1].Value.set; set.function != "" && g.jobs[len(g.jobs)-1].Value.op == take {
			shape = set.shape
		}
		id, err := t.open.shapeOf(t, shape)
		if err != nil {
			t.failAll(g.jobs, err)
			continue
		}
		if c.written = write(rec, shape, id, now); c.row.version == 0 {
			inserts = append(inserts, c)
		} else {
			updates = append(updates, c)
		}
	}
	if groups[0].isRecorded() {
		return append(t.writeRecorded(updates, unchanged, now, false), t.writeRecorded(inserts, nil, now, true)...)
	}
	return append(t.write(updates, now, false), t.write(inserts, now, true)...)
}

// look returns the rows of groups, and the server's time.
func (t *trip) look(groups []*group) (rows []row, now int64, err error) {
	keys := make([]string, len(groups))
	for i, g := range groups {
		keys[i] = g.key
	}
	rows = make([]row, len(groups))
	lines, err := t.conn.Query(t.ctx, "SELECT o, now, version, shape, ends, states, more FROM ratelimit.look($1)", keys)
	if err != nil {
		return nil, 0, t.failed(err, false)
	}
	defer lines.Close()
	for lines.Next() {
		var o int32
		var r row
		if err = lines.Scan(&o, &now, &r.version, &r.shape, &r.ends, &r.states, &r.more); err != nil {
			break
		}
		rows[o-1] = r
	}
	if err == nil {
		err = lines.Err()
	}
	if err != nil { // nothing was changed
		return nil, 0, t.failed(err, false)
	}
	return rows, now, nil
}

// write writes rows that were looked at at an instant, or adds them. It returns the groups
// of rows that others have changed or added since then.
func (t *trip) write(changes []change, now int64, add bool) (again []*group) {
	if len(changes) == 0 {
		return nil
	}
	var done []int32
	var err error
	if add {
		err = t.conn.QueryRow(t.ctx, "SELECT r_o FROM ratelimit.add($1, $2, $3, $4, $5, $6, $7, $8)",
			append(columnsOf(changes, true), now, !t.durable)...).Scan(&done)
	} else {
		err = t.conn.QueryRow(t.ctx, "SELECT r_o FROM ratelimit.write($1, $2, $3, $4, $5, $6, $7, $8, $9)",
			append(columnsOf(changes, false), now, !t.durable)...).Scan(&done)
	}
	if err != nil {
		err = t.failed(err, false)
		for _, c := range changes {
			t.failAll(c.group.jobs, err)
		}
		return nil
	}
	return undone(changes, done)
}

// columnsOf returns the rows of changes as the functions take them: their keys and, unless
// they are new, their versions; then their shapes, ends, untils, states and more.
func columnsOf(changes []change, add bool) []any {
	n := len(changes)
	keys, versions, shapes := make([]string, n), make([]int64, n), make([]int32, n)
	ends, untils, states, more := make([]int64, n), make([]*int64, n), make([]*int64, 0, n*3*maxColumns), make([]*string, n)
	for i, c := range changes {
		keys[i], versions[i], shapes[i], ends[i], untils[i], more[i] = c.group.key, c.row.version, c.shape, c.ends, c.until, c.more
		states = append(states, c.states[:]...)
	}
	if add {
		return []any{keys, shapes, ends, untils, states, more}
	}
	return []any{keys, versions, shapes, ends, untils, states, more}
}

// undone returns the groups of changes that are not done. done has the numbers of changes,
// from 1 on.
func undone(changes []change, done []int32) (again []*group) {
	for i, c := range changes {
		if !slices.Contains(done, int32(i+1)) {
			again = append(again, c.group)
		}
	}
	return again
}

// writeRecorded is write together with the records of all calls, in one statement. unchanged are
// groups that only have records. It returns the groups of which nothing was written.
func (t *trip) writeRecorded(changes []change, unchanged []*group, now int64, add bool) (again []*group) {
	var records []audit.Record
	var rows []int32 // of each record: the number of the change, or 0
	all := slices.Clone(unchanged)
	record := func(g *group, row int) {
		for _, j := range g.jobs {
			if c := &j.Value; c.recording != nil && c.err == nil {
				records, rows = append(records, c.record()), append(rows, int32(row))
			}
		}
	}
	for i, c := range changes {
		all = append(all, c.group)
		record(c.group, i+1)
	}
	for _, g := range unchanged {
		record(g, 0)
	}
	if len(all) == 0 {
		return nil
	}
	columns := columnsOf(changes, add)
	if add {
		columns = slices.Insert(columns, 1, any([]int64(nil))) // no versions
	}
	var done []int32
	var written *bool
	err := asJSON(t.ctx, records, func(text string) error {
		return t.conn.QueryRow(t.ctx, "SELECT r_o, r_written FROM ratelimit.write_recorded($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
			append(slices.Clip(columns), now, text, rows)...).Scan(&done, &written)
	})
	switch {
	case err != nil:
		err = t.failed(err, false)
		for _, g := range all {
			t.failAll(g.jobs, err)
		}
		return nil
	case written == nil:
		return all
	}
	return undone(changes, done)
}

// failed returns the error of a statement. If it says that the server or the schema may be
// another one by now, the store opens its prefix again before its next call.
func (t *trip) failed(err error, answered bool) error {
	explained := t.explain(err, answered)
	t.lockTimeout = t.lockTimeout || isLockTimeout(err)
	if t.Fault(explained) == ratelimit.FaultUnknown || isSchema(err) {
		t.forget(t.open)
	}
	return explained
}

// opened is what a store knows of the schema. It is read again after an error that may mean
// that the store is connected to another server now.
type opened struct {
	prefix string // the id of the prefix, and a colon

	mu     sync.Mutex // not held while a statement runs
	ids    map[string]int32
	limits map[int32][]string
}

// shapeOf returns the number of a shape. It may ask the server.
func (o *opened) shapeOf(t *trip, limits []string) (int32, error) {
	if len(limits) == 0 {
		return 0, nil
	}
	name := strings.Join(limits, " ")
	o.mu.Lock()
	id, ok := o.ids[name]
	o.mu.Unlock()
	if ok {
		return id, nil
	}
	if err := t.conn.QueryRow(t.ctx, "SELECT ratelimit.shape_of($1)", limits).Scan(&id); err != nil {
		return 0, t.failed(err, false)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ids[name], o.limits[id] = id, limits
	return id, nil
}

// limitsOf is the inverse of shapeOf.
func (o *opened) limitsOf(t *trip, id int32) ([]string, error) {
	if id == 0 {
		return nil, nil
	}
	o.mu.Lock()
	limits, ok := o.limits[id]
	o.mu.Unlock()
	if ok {
		return limits, nil
	}
	if err := t.conn.QueryRow(t.ctx, "SELECT ratelimit.limits_of($1)", id).Scan(&limits); err != nil {
		return nil, t.failed(err, false)
	}
	if len(limits) == 0 || len(limits) > maxColumns {
		return nil, t.fail(ratelimit.FaultKey, fmt.Errorf("the shape %d of its row is not in ratelimit.shape", id), "delete the row")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ids[strings.Join(limits, " ")], o.limits[id] = id, limits
	return limits, nil
}

// maxCallers is the most callers of one key that a function take_* admits.
const maxCallers = 1<<31 - 1

// isFast reports whether a function take_* can carry out all calls of a group: takes of the
// same units under the same limits.
func (g *group) isFast() bool {
	f := &g.jobs[0].Value
	if f.op != take || f.set.function == "" || f.upTo && (len(g.jobs) > 1 || f.units > maxCallers) {
		return false
	}
	for _, j := range g.jobs[1:] {
		if c := &j.Value; c.op != take || c.set != f.set || c.units != f.units || c.upTo {
			return false
		}
	}
	return f.units <= rule.MaxUnits
}
