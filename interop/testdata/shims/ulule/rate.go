package limiter

import (
	"fmt"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Rate is a FixedWindow.
type Rate struct {
	Formatted string
	Period    time.Duration
	Limit     int64
}

var windows = map[string]string{"S": "1s", "M": "1m", "H": "1h", "D": "24h"}

// NewRateFromFormatted reads a rate with ratelimit.ParseLimit, after the translation that
// docs/coming-from.md has.
func NewRateFromFormatted(formatted string) (Rate, error) {
	n, unit, _ := strings.Cut(formatted, "-")
	limit, err := ratelimit.ParseLimit(fmt.Sprintf("%s/%s fixed", n, windows[unit]))
	if err != nil {
		return Rate{}, err
	}
	return Rate{Formatted: formatted, Period: limit.Window(), Limit: limit.N()}, nil
}
