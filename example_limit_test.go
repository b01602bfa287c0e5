package ratelimit_test

import (
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
	// no limit ratelimit: limit "5/1h": want a form such as "5/1h fixed", "100/1m sliding" or "10/1s bucket burst=20", or "unlimited" or "deny"
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
	// ratelimit: limit "5/1h": want a form such as "5/1h fixed", "100/1m sliding" or "10/1s bucket burst=20", or "unlimited" or "deny"
	// <nil> 100/1m sliding
}
