package ratelimit_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

func ExampleParseLimit() {
	for _, text := range []string{"5/1h fixed", "10/1s bucket burst=20 name=burst", "5/1h"} {
		limit, err := ratelimit.ParseLimit(text)
		fmt.Println(limit, err)
	}
	// Output:
	// 5/1h fixed <nil>
	// 10/1s bucket burst=20 name=burst <nil>
	// no limit ratelimit: limit "5/1h": want a form such as "5/1h fixed", "100/1m sliding", "10/1s bucket burst=20" or "1000/day calendar tz=Europe/Berlin", or "unlimited" or "deny"
}

// Calendar periods: of days, weeks and months, in a time zone of the tz database.
func ExampleParseLimit_calendar() {
	for _, text := range []string{"1000/day calendar tz=Europe/Berlin", "5000/week calendar", "50000/month calendar day=15", "5/day calendar tz=Local"} {
		limit, err := ratelimit.ParseLimit(text)
		fmt.Println(limit, err)
	}
	// Output:
	// 1000/day calendar tz=Europe/Berlin <nil>
	// 5000/week calendar first=monday <nil>
	// 50000/month calendar day=15 <nil>
	// no limit ratelimit: limit "5/day calendar tz=Local": time zone "Local" depends on the machine: name a zone of the tz database, such as "Europe/Berlin", with time.LoadLocation
}

// A quota that is there again at midnight of the last day of each month, in New York. Most
// months have no 31st, and begin on their last day.
func ExampleMonthly() {
	newYork, err := time.LoadLocation("America/New_York")
	if err != nil {
		fmt.Println(err)
		return
	}
	api := ratelimit.Must(ratelimit.New("reports", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.Monthly(3, 31, newYork)},
		Logger: discard,
	}))
	defer forget(api)
	ctx := context.Background()
	for range 4 {
		d, err := api.Take(ctx, "ann")
		fmt.Println(d.Allowed, d.Remaining, err)
		if !d.Allowed {
			back := time.Now().Add(d.RetryAfter).In(newYork).Round(time.Minute)
			fmt.Println(back.Format("15:04"), "- the day after is the first:", back.AddDate(0, 0, 1).Day() == 1)
		}
	}
	// Output:
	// true 2 <nil>
	// true 1 <nil>
	// true 0 <nil>
	// false 0 <nil>
	// 00:00 - the day after is the first: true
}

// Limits in a configuration file and in flags.
func ExampleLimit_UnmarshalText() {
	var config struct {
		Login ratelimit.Limit `json:"login"`
	}
	fmt.Println(json.Unmarshal([]byte(`{"login": "5/1h fixed"}`), &config), config.Login)
	fmt.Println(json.Unmarshal([]byte(`{"login": "5/1h"}`), &config))

	api := ratelimit.TokenBucket(10, time.Second, 20) // the default
	flags := flag.NewFlagSet("server", flag.ContinueOnError)
	flags.TextVar(&api, "api", api, "limit of the API")
	fmt.Println(flags.Parse([]string{"-api", "100/1m sliding"}), api)
	// Output:
	// <nil> 5/1h fixed
	// ratelimit: limit "5/1h": want a form such as "5/1h fixed", "100/1m sliding", "10/1s bucket burst=20" or "1000/day calendar tz=Europe/Berlin", or "unlimited" or "deny"
	// <nil> 100/1m sliding
}

// A store of your own learns from the limit when a period ends.
func ExampleLimit_Period() {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		fmt.Println(err)
		return
	}
	limit := ratelimit.Daily(1000, berlin)
	now := time.Date(2026, time.March, 29, 10, 0, 0, 0, time.UTC)
	begin, end, ok := limit.Period(now)
	fmt.Println(limit.Calendar(), ok)
	fmt.Println(begin, end)
	fmt.Println("Retry-After:", end.Sub(now))
	// Output:
	// day-Europe/Berlin true
	// 2026-03-29 00:00:00 +0100 CET 2026-03-30 00:00:00 +0200 CEST
	// Retry-After: 12h0m0s
}

// At most 5 units in any hour, whenever that hour begins.
func ExampleRolling() {
	limit := ratelimit.Rolling(5, time.Hour).Named("resets")
	fmt.Println(limit)

	_, err := ratelimit.ParseLimit("5000/1h rolling")
	fmt.Println(err)
	// Output:
	// 5/1h rolling name=resets
	// ratelimit: limit "5000/1h rolling": it allows 5000 units, and a rolling window keeps the instant of each unit: want 1 to 1000; for more, use SlidingWindow
}
