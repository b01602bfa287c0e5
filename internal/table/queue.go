package table

import "container/heap"

// queue is a heap of counters, the one with the earliest place first.
type queue []*counter

func (q *queue) push(c *counter, place int64) {
	c.queue, c.place = q, place
	heap.Push(q, c)
}

func (q *queue) move(c *counter, place int64) {
	c.place = place
	heap.Fix(q, c.index)
}

func (q *queue) remove(c *counter) { heap.Remove(q, c.index) }

// The methods of heap.Interface.

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].place < q[j].place }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(c any) {
	*q = append(*q, c.(*counter))
	(*q)[len(*q)-1].index = len(*q) - 1
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return c
}
