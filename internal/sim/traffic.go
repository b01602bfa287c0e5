package sim

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"time"
)

// Keys says how requests are spread over keys: evenly over Count keys, unless Hot or Zipf is
// set.
type Keys struct {
	Count int     // 0: 1
	Hot   float64 // this fraction of the requests is for one key
	Zipf  float64 // the n-th key is requested in proportion to 1/n^Zipf; must be above 1
}

// source makes the requests that a process gets.
type source struct {
	*rand.Rand
	gap     float64 // the mean time between two requests
	regular bool
	keys    Keys
	zipf    *rand.Zipf
}

func newSource(c *Config, rnd *rand.Rand, rate float64) source {
	s := source{Rand: rnd, gap: float64(time.Second) / rate, regular: c.Regular, keys: c.Keys}
	if c.Keys.Zipf > 1 {
		s.zipf = rand.NewZipf(rnd, c.Keys.Zipf, 1, uint64(c.Keys.Count-1))
	}
	return s
}

func (s *source) first() int64 { return int64(s.Float64() * s.gap) }

func (s *source) next() int64 {
	if s.regular {
		return int64(s.gap)
	}
	return int64(s.ExpFloat64() * s.gap)
}

func (s *source) key() int {
	switch {
	case s.keys.Count == 1:
		return 0
	case s.zipf != nil:
		return int(s.zipf.Uint64())
	case s.keys.Hot > 0 && s.Float64() < s.keys.Hot:
		return 0
	}
	return s.IntN(s.keys.Count)
}

// histogram counts spans in buckets, each an eighth of a power of two wide.
type histogram [64 * 8]int64

func (h *histogram) add(span int64) {
	if span < 8 {
		h[0]++
		return
	}
	top := bits.Len64(uint64(span)) - 1
	h[8*top+int(span>>(top-3)&7)]++
}

func (h *histogram) quantile(part float64) time.Duration {
	total := int64(0)
	for _, n := range h {
		total += n
	}
	rank := int64(math.Ceil(part * float64(total)))
	for i, n := range h {
		if rank -= n; rank <= 0 {
			if i == 0 {
				return 0
			}
			return time.Duration(int64(8+i%8) << (i / 8) >> 3)
		}
	}
	return 0
}
