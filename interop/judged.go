//go:build judged

package interop

// The suites that TestSuites runs, and what they import. No build has the tag
// judged: these imports keep the modules in go.mod, and their hashes in go.sum.
import (
	_ "github.com/go-chi/httprate"
	_ "github.com/go-redis/redis_rate/v10"
	_ "github.com/sethvargo/go-limiter/httplimit"
	_ "github.com/throttled/throttled/v2/store"
	_ "github.com/ulule/limiter/v3/drivers/middleware/fasthttp"
	_ "github.com/ulule/limiter/v3/drivers/middleware/gin"
	_ "github.com/ulule/limiter/v3/drivers/store/redis"
	_ "github.com/valyala/fasthttp/fasthttputil"
)
