package ratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// hourly is a limit whose holds outlive a test unless they are ended.
func hourly(n int64) Options { return quiet(InFlight(n, time.Hour)) }

// TestCloseReportsEnds: when Close has returned, the store knows of all ends, also of those
// that were being reported when it was called.
func TestCloseReportsEnds(t *testing.T) {
	for name, before := range map[string]func(held []func()){
		"Close ends them":   func([]func()) {},
		"they end just now": releaseAll,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend := &remoteBackend{Store: memory(t, "backend")}
				l := processOf(t, backend, hourly(3))
				var held []func()
				for i := range 100 {
					held = append(held, acquires(t, l, fmt.Sprint(i), 1+i%2)...)
				}
				backend.delay(5 * time.Millisecond)
				before(held)
				require.NoError(t, l.Close())
				for i := range 100 {
					require.Zero(t, backend.held(t, fmt.Sprint(i)), i)
				}
			})
		})
	}
}

// TestRefusedReportIsTriedAgain: an end that the store has refused is reported again after a
// second, however long a hold lasts.
func TestRefusedReportIsTriedAgain(t *testing.T) {
	remotely(t, hourly(1), func(t *testing.T, backend *remoteBackend, l *Limiter) {
		held := acquires(t, l, "a", 1)
		backend.set(refused)
		releaseAll(held)
		backend.set(up)
		require.EqualValues(t, 1, backend.held(t, "a"))
		time.Sleep(time.Second + time.Millisecond)
		synctest.Wait()
		require.Zero(t, backend.held(t, "a"))
	})
}

// slowToRenew is a store in this process. Its renewals of the key x take a second.
type slowToRenew struct{ *heldWrapper }

func (s *slowToRenew) Hold(ctx context.Context, r HoldRequest, results []Result) (HoldReply, error) {
	if r.Action == HoldRenew && r.Key == "x" {
		time.Sleep(time.Second)
	}
	return s.heldWrapper.Hold(ctx, r, results)
}

// TestWaiterAfterAReloadIsWoken: a request waits for a hold of the limiter that a Reload has
// replaced. That ends while another end is being reported.
func TestWaiterAfterAReloadIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := waitingFor(time.Hour, InFlight(1, time.Hour))
		o.Store = &slowToRenew{&heldWrapper{inside: memory(t, "store")}}
		r := new(Registry)
		build := func(next *Registry) error {
			_, err := next.New("l", o)
			return err
		}
		require.NoError(t, r.Reload(build))
		old, _ := r.Lookup("l")
		a, x := acquires(t, old, "a", 1), acquires(t, old, "x", 1)
		require.NoError(t, r.Reload(build))
		l, _ := r.Lookup("l")
		defer l.Close()
		w := newWorkshop(l, 0)
		go w.request(ctx, "waits")
		synctest.Wait()
		go x[0]()
		synctest.Wait()
		a[0]()
		synctest.Wait()
		require.Equal(t, map[string]int{"waits": http.StatusOK}, w.answers())
		time.Sleep(time.Minute)
	})
}
