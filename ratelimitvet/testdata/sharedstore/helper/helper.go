package helper

import "github.com/ratelimit-go/ratelimit"

func Limiter(name string, opts ratelimit.Options) *ratelimit.Limiter { // want Limiter:"givesStore\\(1\\)" Limiter:"makes"
	return ratelimit.Must(ratelimit.New(name, opts))
}
