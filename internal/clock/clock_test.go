package clock_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ratelimit-go/ratelimit/internal/clock"
)

func TestNowFollowsTheBubblesClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := clock.Now()
		assert.Positive(t, before, "time in a bubble begins with the year 2000")
		time.Sleep(time.Hour)
		assert.Equal(t, int64(time.Hour), clock.Now()-before)
	})
}

func TestTimeIsTheInverseOfNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		assert.True(t, clock.Time(clock.Now()).Equal(time.Now()))
		assert.Equal(t, time.Minute, time.Until(clock.Time(clock.Now()+int64(time.Minute))))
	})
}
