package ratelimit_test

import (
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestOutagesAreLoggedWithTheirLength also checks that a breaker that opens and
// closes all the time makes two lines in ten seconds, and that no key is
// logged.
func TestOutagesAreLoggedWithTheirLength(t *testing.T) {
	var log syncBuffer
	remotely(t, Options{Limits: []Limit{hour}, Logger: slog.New(slog.NewTextHandler(&log, nil))}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		count := func(code Code) int { return strings.Count(log.String(), "code="+string(code)) }
		for i, outage := range []time.Duration{500 * time.Millisecond, 1100 * time.Millisecond, 500 * time.Millisecond} {
			log.Reset()
			for range 50 {
				backend.set(refused)
				for i := range 20 {
					decide(t, l, fmt.Sprint("evil\nkey", i), 1)
				}
				synctest.Wait()
				backend.set(up)
				time.Sleep(outage)
				decide(t, l, "evil\nkey", 0)
				synctest.Wait()
			}
			require.Equal(t, 1, count(CodeStoreFailed))
			lines := 3 // one per 10 s, in 25 s
			if outage > time.Second {
				lines = 50
			}
			require.Equal(t, lines, count(CodeStoreDown))
			require.Equal(t, lines, count(CodeStoreBack))
			require.Equal(t, lines, strings.Count(log.String(), fmt.Sprint(" lasted=", outage)))
			require.Contains(t, log.String(), fmt.Sprintf("code=store-down outages=%d on_failure=FallbackLocal error=", 50*i+1))
			require.NotContains(t, log.String(), "evil")
			time.Sleep(time.Minute)
		}
	})
}

// TestLogEndsWithTheStateOfTheStore has outages that begin soon after another outage.
func TestLogEndsWithTheStateOfTheStore(t *testing.T) {
	var log syncBuffer
	remotely(t, Options{Limits: []Limit{hour}, Logger: slog.New(slog.NewTextHandler(&log, nil))}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		loggedCodes := func() (codes []string) {
			synctest.Wait()
			for _, code := range regexp.MustCompile("code=store-(down|back)").FindAllStringSubmatch(log.String(), -1) {
				codes = append(codes, code[1])
			}
			return codes
		}
		startOutage(t, backend, l, refused)
		require.Equal(t, []string{"down"}, loggedCodes())
		endOutage(t, backend, l)
		require.Equal(t, []string{"down", "back"}, loggedCodes())
		startOutage(t, backend, l, refused)
		require.Equal(t, []string{"down", "back"}, loggedCodes(), "it may be over soon")
		time.Sleep(time.Second - 1)
		require.Equal(t, []string{"down", "back"}, loggedCodes())
		time.Sleep(time.Nanosecond)
		require.Equal(t, []string{"down", "back", "down"}, loggedCodes())
		endOutage(t, backend, l)
		require.Equal(t, []string{"down", "back", "down", "back"}, loggedCodes(), "at once")
		startOutage(t, backend, l, refused)
		backend.set(up)
		time.Sleep(200 * time.Millisecond)
		decide(t, l, "comes back", 0)
		time.Sleep(time.Minute)
		require.Equal(t, []string{"down", "back", "down", "back"}, loggedCodes(), "a short outage is not logged, but counted")
		startOutage(t, backend, l, refused)
		require.Len(t, loggedCodes(), 5)
		require.Contains(t, log.String(), "code=store-down outages=4 ")
		endOutage(t, backend, l)
		startOutage(t, backend, l, refused)
		require.NoError(t, l.Close(), "and does not wait to tell of it")
		require.Len(t, loggedCodes(), 6)
	})
}

// TestLoggerThatPanicsHidesNoOutage has a logger that panics when it gets an outage or its end.
// The process goes on, and later outages are reported.
func TestLoggerThatPanicsHidesNoOutage(t *testing.T) {
	for name, codes := range map[string][]Code{
		"at the beginning": {CodeStoreDown}, "at the end": {CodeStoreBack}, "always": {CodeStoreDown, CodeStoreBack},
	} {
		t.Run(name, func(t *testing.T) {
			log, seen := &logged{panics: panicAt(codes...)}, new(recorder)
			remotely(t, Options{Limits: []Limit{hour}, Logger: log.logger(), Observe: seen.observe}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
				for range 2 {
					startOutage(t, backend, l, refused)
					endOutage(t, backend, l)
					time.Sleep(time.Minute)
				}
				synctest.Wait()
				var got []Code
				for _, code := range log.codes() {
					if code == CodeStoreDown || code == CodeStoreBack {
						got = append(got, code)
					}
				}
				require.Equal(t, []Code{CodeStoreDown, CodeStoreBack, CodeStoreDown, CodeStoreBack}, got)
				require.Len(t, seen.of(EventStoreDown), 2)
				require.Len(t, seen.of(EventStoreBack), 2)
			})
		})
	}
}

// TestLoggerThatPanicsBetweenOutages has a logger that panics at the end of an outage, when the
// next one has begun and is not due yet.
func TestLoggerThatPanicsBetweenOutages(t *testing.T) {
	log := &logged{panics: func(code Code) bool {
		if code == CodeStoreBack {
			time.Sleep(100 * time.Millisecond)
		}
		return code == CodeStoreBack
	}}
	remotely(t, Options{Limits: []Limit{hour}, Logger: log.logger()}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		startOutage(t, backend, l, refused)
		synctest.Wait()
		backend.set(up)
		time.Sleep(time.Second)
		decide(t, l, "comes back", 0)
		startOutage(t, backend, l, refused) // while the logger has the end of the one before
		time.Sleep(2 * time.Second)
		synctest.Wait()
		codes := log.codes()
		require.Equal(t, CodeStoreDown, codes[len(codes)-1])
	})
}
