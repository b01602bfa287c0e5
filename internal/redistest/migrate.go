package redistest

import "errors"

// A Migration is the move of one slot from one master to another. Until Finish the old
// master answers for the keys that it still has, and redirects clients with ASK for
// all others.
type Migration struct {
	Slot     int
	From, To *Server

	c *Cluster
}

// Migrate moves a slot and its keys, with all steps of a Migration.
func (c *Cluster) Migrate(slot int, to *Server) {
	c.t.Helper()
	m := c.BeginMigration(slot, to)
	for m.MoveKeys(100) > 0 {
	}
	m.Finish()
}

// BeginMigration starts to move a slot to another master.
func (c *Cluster) BeginMigration(slot int, to *Server) *Migration {
	c.t.Helper()
	m := &Migration{Slot: slot, From: c.Owner(slot), To: to, c: c}
	if m.From == nil || m.From == to {
		c.t.Fatalf("redistest: slot %d cannot move to %s: it is there, or nowhere", slot, to.Addr)
	}
	to.Do("CLUSTER", "SETSLOT", slot, "IMPORTING", c.ids[m.From])
	m.From.Do("CLUSTER", "SETSLOT", slot, "MIGRATING", c.ids[to])
	return m
}

// MoveKeys moves at most n keys, and returns how many it has found. If it has found none,
// the slot is empty and stays empty, because the new master gets all new keys.
func (m *Migration) MoveKeys(n int) int {
	m.c.t.Helper()
	keys := m.From.Do("CLUSTER", "GETKEYSINSLOT", m.Slot, n).([]any)
	if len(keys) > 0 {
		host, port := hostPort(m.To.Addr)
		// A key that expires in the meantime is not an error: the reply is then
		// NOKEY.
		m.From.Do(append([]any{"MIGRATE", host, port, "", 0, patience.Milliseconds(), "AUTH2", admin, admin, "KEYS"}, keys...)...)
	}
	return len(keys)
}

// Finish gives the slot, which must be empty, to the new master and notifies all other
// masters. It returns when all nodes agree.
func (m *Migration) Finish() {
	m.c.t.Helper()
	nodes := []*Server{m.To, m.From} // in this order the slot always has a master
	for _, node := range m.c.Nodes {
		if node != m.To && node != m.From && node.Running() && node.isMaster() {
			nodes = append(nodes, node)
		}
	}
	for _, node := range nodes {
		node.Do("CLUSTER", "SETSLOT", m.Slot, "NODE", m.c.ids[m.To])
	}
	m.c.await("the slot to have moved", func(v *view) error {
		if v.owners[m.Slot] != m.To {
			return errors.New("it has not")
		}
		return nil
	})
}
